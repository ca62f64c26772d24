"""Compares counted syllables with the phonemes of a haiku data set: the share of lines right.

    python benchmarks/syllables.py haiku.parquet

The file has the columns `text` (lines separated by ` / `) and `text_phonemes` (lines by ` / `,
words by spaces, syllables by `|`).
"""

import sys
from pathlib import Path

import pyarrow.parquet

from loramix.metrics.syllables import line_syllables


def line_counts(source: Path) -> list[tuple[int, int]]:
    """Return the syllables of each line of each poem, as counted and by its phonemes."""
    rows = pyarrow.parquet.read_table(source, columns=["text", "text_phonemes"]).to_pylist()
    counts: list[tuple[int, int]] = []
    for row in rows:
        lines, spoken = row["text"].split(" / "), row["text_phonemes"].split(" / ")
        for line, phonemes in zip(lines, spoken, strict=True):
            syllables = sum(word.count("|") + 1 for word in phonemes.split())
            counts.append((line_syllables(line), syllables))
    return counts


def main(source: Path) -> None:
    """Print the shares of lines counted right, too short and too long."""
    gaps = [counted - spoken for counted, spoken in line_counts(source)]
    right, under, over = gaps.count(0), sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    lines = len(gaps)
    print(
        f"{right / lines:.2%} of {lines:,} lines right, {under / lines:.2%} short, "
        f"{over / lines:.2%} long"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
