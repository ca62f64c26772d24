"""Generated texts against references and inputs: exact match and the use of keywords."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from loramix.errors import DataError
from loramix.metrics.words import plain_letters, split_words, stem

EDGES = {"Po", "Ps", "Pe", "Pi", "Pf", "Zs"}  # Unicode: punctuation, brackets, quotes, spaces
MEANINGFUL = "%‰‱٪؉؊#&@/\\′″"  # part of an answer: "5%" is not "5", nor is "-5"
# Marks of direction and of emojis' style, soft hyphens, and spaces and joiners of no width; not
# the joiners of Persian and Indian letters and of emojis, which show.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]"
)
# the label of a choice; "(S)-warfarin" has none, and a label on its own is an answer
LABEL = re.compile(r"^\(?[A-Z]\)\s+(?=\S)")
DECIMAL = re.compile(r"\.\d")  # ".5" is not "5"
ARTICLES = re.compile(r"^(?:(?:a|an|the)\s+)+(?=\S)")
FUNCTION_WORDS = """
a an the this that these those there here
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
who whom whose which what when where why how
and or but nor so if then than as because while although though
of to in on at by for from with without into onto upon over under about between through
is am are was were be been being do does did has have had
can could will would shall should may might must
not no yes too very just also such some any each both either neither
"""


def exact_match(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return 1.0 for each text that equals its reference and 0.0 for any other.

    The mean is the accuracy where targets are answers. The comparison follows SQuAD (Rajpurkar et
    al. 2016, arXiv:1606.05250): case, white space, Unicode form, leading English articles, and
    punctuation, brackets and quotes around the text do not count, nor do the width of characters
    ("５" is "5"), the form of Arabic letters and invisible marks. Unlike there, punctuation within
    the text counts, and so do signs, as in "-5" and "5%", and digits of other scripts and in other
    places ("10²" is not "102"). A choice's label at the start, "(B) text" or "B) text", is dropped,
    right or wrong. An empty text never matches.
    """
    _check_lengths(generated, references)
    texts, expected = map(_normalised, generated), map(_normalised, references)
    return [float(text != "" and text == each) for text, each in zip(texts, expected, strict=True)]


def keyword_use(inputs: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Return the share (0 to 1) of each input's keywords that its text uses.

    Keywords are the input's distinct words without function words ("the", "no"), or all its words
    if it has no others. A word is used if the text has one of the same Porter stem: "frogs" uses
    "frog". An input without words and an empty text score 0.
    """
    if len(inputs) != len(texts):
        raise DataError(f"there are {len(inputs)} inputs, but {len(texts)} texts")
    return [
        _used(_keywords(given), _stems(_plain_words(text)))
        for given, text in zip(inputs, texts, strict=True)
    ]


def _check_lengths(generated: Sequence[str], references: Sequence[str]) -> None:
    if len(generated) != len(references):
        raise DataError(
            f"there are {len(generated)} generated texts, but {len(references)} references"
        )


def _normalised(text: str) -> str:
    """Return the part of an answer that counts, in one form for all its spellings."""
    visible = INVISIBLE.sub("", plain_letters(text))
    straight = unicodedata.normalize("NFC", visible)
    plain = _without_edges(" ".join(straight.split()))
    folded = unicodedata.normalize("NFC", _without_edges(LABEL.sub("", plain)).casefold())
    return _without_edges(ARTICLES.sub("", folded))


def _without_edges(text: str) -> str:
    """Return `text` without punctuation and spaces around it; a text of nothing else is kept."""
    start, end = 0, len(text)
    while start < end and _is_edge(text[start]) and not DECIMAL.match(text, start):
        start += 1
    while end > start and _is_edge(text[end - 1]):
        end -= 1
    return text[start:end] or text


def _is_edge(char: str) -> bool:
    return char == "`" or (unicodedata.category(char) in EDGES and char not in MEANINGFUL)


def _plain_words(text: str) -> list[str]:
    return [word.removesuffix("'s") for word in split_words(text)]


def _keywords(text: str) -> set[str]:
    """Return the stems of the content words in `text`, or of all words if it has no others."""
    found, left_out = set(_plain_words(text)), set(FUNCTION_WORDS.split())
    return _stems(found - left_out or found)


def _stems(found: Iterable[str]) -> set[str]:
    return {stem(word) for word in found}


def _used(keywords: set[str], stems: set[str]) -> float:
    return len(keywords & stems) / len(keywords) if keywords else 0.0
