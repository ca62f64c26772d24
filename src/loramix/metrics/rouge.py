"""ROUGE: overlap of words and word pairs between generated and reference text (Lin, 2004)."""

from collections.abc import Sequence

from loramix.errors import DataError, MissingExtraError

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(generated: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return the F1 of rouge1, rouge2 and rougeL for every pair, 0 to 1, on stemmed words; an empty text scores 0."""
    if len(generated) != len(references):
        raise DataError(f"there are {len(generated)} generated texts for {len(references)} references")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("rouge-score", "metrics") from error
    scorer = RougeScorer(list(NAMES), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(generated, references, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in NAMES}
