"""ROUGE-1, ROUGE-2 and ROUGE-L of generated texts."""

from collections.abc import Sequence

from loramix.errors import DataError, MissingExtraError
from loramix.metrics.words import split_words, stem

KINDS = ("rouge1", "rouge2", "rougeL")
SHORTEST_STEMMED = 4  # letters of a word, as in rouge-score


class RougeWords:
    """The words that ROUGE compares: those of `split_words`, and of longer ones their stems.

    On ASCII they are those of rouge-score's own tokenizer, which takes every other letter for a
    space: a Russian or Japanese text has no words there.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`."""
        words = split_words(text, apostrophes=False)
        stems = (stem(word) if len(word) >= SHORTEST_STEMMED else word for word in words)
        return [word for word in stems if word]


def rouge(generated: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """Return F1 scores (0 to 1) by `rouge1`, `rouge2` and `rougeL`, one per sample in each.

    Computed by the rouge-score library, on ASCII texts with the results of its own tokenizer:
    words in lower case, those of four letters or more reduced to their Porter stems, so that
    "frogs" matches "frog". Line breaks only separate words. A text without words, such as one of
    nothing but punctuation, scores 0.
    """
    if len(generated) != len(references):
        raise DataError(
            f"there are {len(generated)} generated texts, but {len(references)} references"
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("rouge-score", "metrics") from error
    scorer = RougeScorer(KINDS, tokenizer=RougeWords())
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for text, reference in zip(generated, references, strict=True):
        found = scorer.score(target=reference, prediction=text)
        for kind in KINDS:
            scores[kind].append(float(found[kind].fmeasure))
    return scores
