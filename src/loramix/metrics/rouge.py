"""ROUGE-1, ROUGE-2 and ROUGE-L of generated texts."""

from collections.abc import Sequence

from loramix.errors import DataError, MissingExtraError

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(generated: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return F1 scores (0 to 1) by `rouge1`, `rouge2` and `rougeL`, one per sample in each.

    Computed by the rouge-score library: words are runs of the letters a to z and of digits, in
    lower case, and those of four letters or more are reduced to their Porter stems, so that "frogs"
    matches "frog". Line breaks only separate words. A text without words scores 0.
    """
    if len(generated) != len(references):
        raise DataError(
            f"there are {len(generated)} generated texts, but {len(references)} references"
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("rouge-score", "metrics") from error
    scorer = RougeScorer(KINDS, use_stemmer=True)
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for text, reference in zip(generated, references, strict=True):
        found = scorer.score(target=reference, prediction=text)
        for kind in KINDS:
            scores[kind].append(float(found[kind].fmeasure))
    return scores
