"""The words of a text in any script, as every measure that counts words sees them."""

import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache

import regex

from loramix.errors import MissingExtraError

# What scores depend on besides the texts; a new number has finished runs scored anew.
TOKENIZER = "unicode-words 1"

# Scripts that put no space between words; Line_Break=SA are those of South East Asia.
_UNSPACED = r"[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Tibt}\p{Line_Break=SA}--\p{Nd}]"
_LONE = rf"[[\p{{L}}\p{{N}}]&&{_UNSPACED}]"
_START = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]"
_IGNORED = r"[\p{Default_Ignorable_Code_Point}--\u200b]"  # a zero-width space parts words
_RUN = rf"{_START}[{_START}\p{{M}}{_IGNORED}]*+"
_EMOJI = r"[\p{Extended_Pictographic}\p{Regional_Indicator}--[©®]]"
_CHARACTER = rf"(?={_LONE})\X\p{{M}}*+"  # a letter with all its vowel signs and accents
_WORDS = {
    joined: regex.compile(rf"{_CHARACTER}|(?={_EMOJI})\X|{run}", regex.V1)
    for joined, run in {True: rf"{_RUN}(?:'{_RUN})*+", False: _RUN}.items()
}
_MARKS = rf"[\p{{P}}&&{_UNSPACED}]|[[\p{{P}}\p{{S}}]&&\p{{Block=Halfwidth_and_Fullwidth_Forms}}]"
_APART = regex.compile(rf"{_CHARACTER}|{_MARKS}", regex.V1)
_INVISIBLE = regex.compile(_IGNORED, regex.V1)

# Unicode's tags of characters that are another one in a different width, or in joined handwriting
_SAME_LETTER = ("<wide>", "<narrow>", "<isolated>", "<initial>", "<medial>", "<final>")
_FIRST_OF_THEM, _LAST_OF_THEM = 0x3000, 0xFFEE


def split_words(text: str, *, apostrophes: bool = True) -> list[str]:
    """Return the words of `text`, case folded.

    A word is a run of letters, their marks and digits of any script. Of scripts that put no space
    between words (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar, Tibetan and their like),
    every character is a word, and so is every emoji. Punctuation, hyphens and underscores separate
    words, and without `apostrophes` they do too; invisible characters within a word do not count.
    """
    found = _WORDS[apostrophes].findall(one_spelling(text))
    words = (_INVISIBLE.sub("", word) for word in found)
    return [word for word in words if word]


def one_spelling(text: str) -> str:
    """Return `text` case folded, and in one form for all spellings of a letter.

    These are composed and decomposed accents, full and half width, joined forms, and straight and
    curly apostrophes. Compatibility forms (NFKC) would fold more, and make "10²" the number 102.
    """
    folded = unicodedata.normalize("NFC", plain_letters(text)).casefold()
    return unicodedata.normalize("NFC", folded)


def plain_letters(text: str) -> str:
    """Return `text` with letters in their usual width and unjoined form, and straight
    apostrophes.
    """
    return text if text.isascii() else text.translate(_plain_letters())


def spaced(text: str) -> str:
    """Return `text` in composed form (NFC) with spaces around the characters of scripts that have
    none between words, and around their punctuation, for tokenizers that split at spaces.
    """
    return str(_APART.sub(r" \g<0> ", unicodedata.normalize("NFC", text)))


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """Return the Porter stem of a word in lower case; other scripts than Latin have none, and keep
    their words.
    """
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise MissingExtraError("nltk", "metrics") from error
    return str(PorterStemmer().stem(word))


@cache
def _plain_letters() -> Mapping[int, str]:
    table = {0x2019: "'", 0x02BC: "'"}
    for code in range(_FIRST_OF_THEM, _LAST_OF_THEM + 1):
        if unicodedata.decomposition(chr(code)).startswith(_SAME_LETTER):
            table[code] = unicodedata.normalize("NFKC", chr(code))
    return table
