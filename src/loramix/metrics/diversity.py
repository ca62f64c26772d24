"""How many words texts have, and how often they repeat themselves."""

import re
import unicodedata
from collections.abc import Sequence

WORD = re.compile(
    r"[^\W_]+(?:['\u2019][^\W_]+)*"
)  # letters and digits of any script; "don't" is one word


def split_words(text: str) -> list[str]:
    """Return the words of `text`, case folded: runs of letters and digits, with apostrophes inside
    but no hyphens.

    The two forms of accented letters, and of apostrophes, are one.
    """
    found = WORD.findall(unicodedata.normalize("NFC", text))
    return [word.casefold().replace("\u2019", "'") for word in found]


def words(texts: Sequence[str]) -> list[float]:
    """Return the number of words of each text, 0 or more."""
    return [float(len(split_words(text))) for text in texts]


def repetition(texts: Sequence[str]) -> list[float]:
    """Return for each text the share (0 to 1) of its pairs of adjacent words that repeat an earlier
    pair of that text.

    0 for a text of fewer than two words.
    """
    return [_repeated(_ngrams(text, 2)) for text in texts]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share (0 to 1) of distinct n-grams of words among all n-grams of all texts, `n`
    being 1 or more.

    Distinct-n of Li et al. 2016, arXiv:1510.03055. No n-gram reaches from one text into the next. 0
    where there are none. The more texts, the lower: compare sets of equal size.
    """
    if n < 1:
        raise ValueError(f"n-grams have 1 word or more, not {n}")
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = split_words(text)
    return [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]


def _repeated(ngrams: list[tuple[str, ...]]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
