"""The length of texts in words of any script, and how often texts repeat themselves."""

from collections.abc import Sequence

from loramix.metrics.words import split_words


def words(texts: Sequence[str]) -> list[float]:
    """Return the number of words of each text, 0 or more."""
    return [float(len(split_words(text))) for text in texts]


def repetition(texts: Sequence[str]) -> list[float]:
    """Return the share (0 to 1) of adjacent word pairs of each text that repeat an earlier pair.

    A text of fewer than two words gives 0.
    """
    return [_repeated(_ngrams(text, 2)) for text in texts]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share (0 to 1) of distinct n-grams among all word n-grams of all texts.

    This is distinct-n of Li et al. 2016, arXiv:1510.03055. No n-gram reaches from one text into
    the next; without any, the share is 0. It falls with the number of texts, so only sets of equal
    size compare.
    """
    if n < 1:
        raise ValueError(f"n-grams have 1 word or more, not {n}")
    ngrams: list[tuple[str, ...]] = []
    for text in texts:
        ngrams += _ngrams(text, n)
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = split_words(text)
    return [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]


def _repeated(ngrams: list[tuple[str, ...]]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
