"""Rebuild the package's table of syllable counts from a copy of the CMU Pronouncing Dictionary.

    python tools/build_syllable_table.py cmudict.dict [OUT]

One entry stands on each line, `word PH OW1 N IY0 M Z # note`; quotes and colons around the word and
its phonemes, as in a JSON rendering of the dictionary, are accepted. A word's later pronunciations,
`word(2)`, are left out: the first one counts.
"""

import gzip
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

TABLE = Path(__file__).parents[1] / "src" / "loramix" / "metrics" / "data" / "syllables.txt.gz"
ENTRY = re.compile(
    r'\s*"?(?P<word>[^\s";]+?)(?P<variant>\(\d+\))?"?:?'
    r'\s+"?(?P<phonemes>[A-Z]+[0-2]?(?: [A-Z]+[0-2]?)*)'
)


def read_counts(lines: Iterable[str]) -> dict[str, int]:
    """Return the syllable count of each word's first pronunciation."""
    counts: dict[str, int] = {}
    for entry in filter(None, map(ENTRY.match, lines)):
        # Vowels alone carry a stress digit, and a syllable has one vowel.
        syllables = sum(phoneme[-1].isdigit() for phoneme in entry["phonemes"].split())
        if syllables and not entry["variant"]:
            counts.setdefault(entry["word"].lower(), syllables)
    return counts


def table_text(counts: dict[str, int]) -> str:
    """Return one line per syllable count: the count, then its words in order."""
    words = defaultdict(list)
    for word, count in counts.items():
        words[count].append(word)
    return "".join(f"{count} {' '.join(sorted(words[count]))}\n" for count in sorted(words))


def main(source: Path, table: Path = TABLE) -> None:
    """Write `table` from the dictionary file `source`; the same dictionary gives the same bytes."""
    with source.open(encoding="utf-8") as lines:
        counts = read_counts(lines)
    if not counts:
        raise SystemExit(f"{source} holds no dictionary entry of the form 'word PH OW1 N IY0 M Z'")
    table.write_bytes(gzip.compress(table_text(counts).encode(), compresslevel=9, mtime=0))
    print(f"{len(counts):,} words, {table.stat().st_size:,} bytes: {table}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
