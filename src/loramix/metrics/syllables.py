"""Syllables of English words and lines: a pronouncing dictionary, and rules for unknown words."""

import gzip
import re
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files

SPOKEN = {"&": "and", "%": "percent"}
UNIT_SYLLABLES = (
    *(0, 1, 1, 1, 1, 1, 1, 2, 1, 1),  # "" (as in twenty), one … nine
    *(1, 3, 1, 2, 2, 2, 2, 3, 2, 2),  # ten … nineteen
)
SCALES = ((10**9, 2), (10**6, 2), (1000, 2), (100, 2))  # billion, million, thousand, hundred
# an ending, the letters that it may replace, the syllables that it adds
ENDINGS = (
    ("ically", ("ic",), 1),
    ("ing", ("", "e"), 1),
    ("ings", ("", "e"), 1),
    ("iness", ("y",), 1),
    ("ness", ("",), 1),
    ("less", ("",), 1),
    ("ful", ("",), 1),
    ("some", ("",), 1),
    ("like", ("",), 1),
    ("able", ("", "e"), 2),
    ("ish", ("", "e"), 1),
    ("ier", ("y",), 1),
    ("iest", ("y",), 1),
    ("er", ("", "e"), 1),
    ("ers", ("", "e"), 1),
    ("est", ("", "e"), 1),
    ("ly", ("le",), 0),
    ("ly", ("",), 1),
    ("y", ("", "e"), 1),
)
PREFIXES = dict.fromkeys(("dis", "mis", "non", "out", "pre", "re", "un"), 1)
PREFIXES |= dict.fromkeys(("anti", "over", "under"), 2)
SHORTEST_PART = 3  # letters in each half of a compound, and in the stem of a derived word
LONGEST_SPELLED = 4  # letters of an unknown word in capitals that is read letter by letter
CONTRACTIONS = re.compile(r"(?P<word>.+)(?P<ending>n't|'(?:s|d|ll|re|ve|m))")
TOKEN = re.compile(
    r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:st|nd|rd|th|s)?(?![a-z0-9])|[0-9]+|[a-z][a-z']*",
    re.IGNORECASE,
)


def line_syllables(line: str) -> int:
    """Return the syllables of all words in `line`, which may be empty."""
    return sum(count_syllables(word) for word in line.split())


@lru_cache(maxsize=2**16)
def count_syllables(word: str) -> int:
    """Return the syllables of `word` as read aloud, punctuation ignored.

    Of several pronunciations, the dictionary's first counts. Hyphens and slashes split a word,
    numbers are read out, CamelCase is read as several words, a link without its scheme, and an
    abbreviation (capitals, or no vowel) letter by letter. A word without a Latin letter or a digit
    counts 0.
    """
    plain = _ascii(word)
    known = _table().get(plain.strip('.,;:!?"()[]*_').lower())
    if known:
        return known
    plain = re.sub(r"https?://|\bwww\.", "", plain)
    plain = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain)  # CamelCase
    for sign, spoken in SPOKEN.items():
        plain = plain.replace(sign, f" {spoken} ")
    return sum(_count_token(token) for token in TOKEN.findall(plain))


@cache
def _table() -> dict[str, int]:
    """Return the dictionary's words with their syllable counts."""
    packed = (files("loramix.metrics") / "data" / "syllables.txt.gz").read_bytes()
    counts = {}
    for line in gzip.decompress(packed).decode().splitlines():
        count, *words = line.split(" ")
        counts.update(dict.fromkeys(words, int(count)))
    return counts


def _ascii(word: str) -> str:
    """Return `word` without accents, with straight apostrophes and plain hyphens."""
    straight = re.sub("[\u2018\u2019\u02bc\u00b4`]", "'", word)
    straight = re.sub("[\u2010-\u2015\u2022\u00b7]", "-", straight)
    return unicodedata.normalize("NFKD", straight).encode("ascii", "ignore").decode()


def _count_token(token: str) -> int:
    """Return the syllables of a number, or of a word of letters and apostrophes."""
    if token[0].isdigit():
        return _number_syllables(token.lower())
    word = token.lower().rstrip("'")
    if _known(word):
        return _known(word)
    if token.isupper() and len(word) <= LONGEST_SPELLED and word.isalpha():
        return _spelled(word)
    return _apostrophe_syllables(word) or _letters_syllables(word.replace("'", ""))


def _known(word: str) -> int:
    """Return the dictionary's count for `word`, or 0."""
    return _table().get(word, 0)


def _spelled(word: str) -> int:
    """Return the syllables of the names of the letters."""
    return sum(map(_known, word))


# --- numbers


def _number_syllables(text: str) -> int:
    """Return the syllables of `1,024`, `3.5`, `21st` or `80s`; 1100 to 2099 are read as years."""
    found = re.match(r"([0-9,]+)(?:\.([0-9]+))?([a-z]*)", text)
    if found is None:
        raise ValueError(f"{text!r} does not begin with a digit")
    digits, fraction, ending = found.groups()
    whole = digits.replace(",", "")
    # 007, and numbers beyond billions, are read digit by digit.
    if len(whole) > 12 or (len(whole) > 1 and whole[0] == "0"):
        return sum(_cardinal(int(digit)) for digit in whole)
    number = int(whole)
    # 2000 to 2009 are "two thousand …", like any other number.
    in_centuries = 1100 <= number < 2000 or 2010 <= number < 2100
    year = len(digits) == 4 and not fraction and in_centuries
    count = _year(number) if year else _cardinal(number)
    if fraction:
        count += 1 + sum(_cardinal(int(digit)) for digit in fraction)
    tieth = ending == "th" and whole[-1] == "0" and whole[-2:] not in ("0", "00", "10")
    return count + tieth + (ending == "nd")  # twen-ti-eth, sec-ond


def _year(year: int) -> int:
    century, rest = divmod(year, 100)
    if rest == 0:
        return _cardinal(century) + 2  # nineteen hundred
    return _cardinal(century) + (1 if rest < 10 else 0) + _cardinal(rest)  # nineteen oh five


def _cardinal(number: int) -> int:
    """Return the syllables of `number` as a cardinal in American English, without "and"."""
    if number == 0:
        return 2
    for size, name in SCALES:
        if number >= size:
            above, rest = divmod(number, size)
            return _cardinal(above) + name + (_cardinal(rest) if rest else 0)
    if number < 20:
        return UNIT_SYLLABLES[number]
    tens, unit = divmod(number, 10)
    return (3 if tens == 7 else 2) + UNIT_SYLLABLES[unit]


# --- words that the dictionary lacks


def _apostrophe_syllables(word: str) -> int:
    """Return the syllables of a contraction, or of two words around an apostrophe, else 0."""
    contraction = CONTRACTIONS.fullmatch(word)
    if contraction:
        stem, ending = contraction["word"], contraction["ending"]
        return _count_token(stem) + _adds_syllable(stem, ending)
    first, _, second = word.partition("'")
    if _known(first) and len(second) >= SHORTEST_PART and _known(second):
        return _known(first) + _known(second)
    return 0


def _adds_syllable(stem: str, ending: str) -> bool:
    """Return whether a contracted ending is a syllable of its own after `stem`."""
    match ending:
        case "'s":
            return bool(re.search(r"(?:[sxz]|ch|sh|ce|ge|se|ze)$", stem))
        case "'d":
            return bool(re.search(r"[dt]e?$", stem))
        case "'ll":
            return True
        case "'m":
            return False
    return stem[-1] not in "aeiouwy"  # n't, 're, 've


def _letters_syllables(word: str) -> int:
    """Return the syllables of an unknown word of lower-case letters."""
    shortened = re.sub(r"(.)\1{2,}", r"\1\1", word)
    for candidate in (shortened, re.sub(r"(.)\1", r"\1", shortened)):
        if candidate != word and _known(candidate):  # elongated: soooo, nooo
            return _known(candidate)
    if not re.search("[aeiouy]", word):
        return 1 if re.search(r"(.)\1", word) else _spelled(word)  # hmmm is a sound, btw is spelled
    return (
        _inflected_syllables(shortened)
        or _derived_syllables(shortened)
        or _compound_syllables(shortened)
        or _vowel_groups(shortened)
    )


def _derived_syllables(word: str) -> int:
    """Return the syllables of a known stem with a prefix or an ending, or 0 if there is none."""
    for prefix, added in PREFIXES.items():
        rest = word.removeprefix(prefix)
        if rest != word and len(rest) > SHORTEST_PART and _known(rest):
            return added + _known(rest)
    for ending, replacements, added in ENDINGS:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < SHORTEST_PART:
            continue
        candidates = [stem + letters for letters in replacements]
        if "" in replacements:
            candidates.append(_single(stem))
        for candidate in filter(_known, candidates):
            return _known(candidate) + added
    return 0


def _inflected_syllables(word: str) -> int:
    """Return the syllables of a known word in the plural, third person or past, or 0."""
    if word.endswith("ed"):
        for stem in (word[:-2], word[:-1], _single(word[:-2])):
            if len(stem) >= SHORTEST_PART and _known(stem):
                return _known(stem) + bool(re.search("[dt]e?$", stem))
    if word.endswith("s") and len(word) > SHORTEST_PART:
        for stem in (word[:-1], word[:-2] if word.endswith("es") else ""):
            if _known(stem):
                return _known(stem) + _adds_syllable(stem, "'s")
    return 0


def _single(stem: str) -> str:
    """Return `stem` without the doubling of its last letter: runn(ing) is run."""
    return stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem


def _compound_syllables(word: str) -> int:
    """Return the syllables of two known words written as one, the fewest of all cuts, or 0."""
    cuts = range(SHORTEST_PART, len(word) - SHORTEST_PART + 1)
    halves = ((_known(word[:cut]), _known(word[cut:])) for cut in cuts)
    return min((first + second for first, second in halves if first and second), default=0)


def _vowel_groups(word: str) -> int:
    """Return the number of vowel groups in `word`, at least 1.

    A silent e counts 0; two vowels that are spoken apart, as in "lion", count 2.
    """
    if not re.search("[dt]ed$|(?:[sxzcg]|ch|sh)es$|[^aeiouylrw]le[sd]?$", word):
        word = re.sub("(?<=[^aeiou])e[sd]?$", "", word)
    groups = len(re.findall("[aeiouy]+", word))
    parted = len(re.findall("(?<![cgstx])i[aou]|[^qg]u[ao]|eo|[aeiou]ing|y[aeiou]", word))
    return max(1, groups + parted)
