"""Print the percentage of lines whose syllables are counted as the phonemes of a haiku data set
say.

    python benchmarks/syllables.py haiku.parquet

The file has the columns `text` (lines separated by ` / `) and `text_phonemes` (lines by ` / `,
words by spaces, syllables by `|`).
"""

import sys
from pathlib import Path

import pyarrow.parquet

from loramix.metrics.syllables import line_syllables


def line_counts(source: Path) -> list[tuple[int, int]]:
    """Return for each line of each poem its syllables as counted, and as its phonemes say."""
    rows = pyarrow.parquet.read_table(source, columns=["text", "text_phonemes"]).to_pylist()
    return [
        (line_syllables(line), sum(word.count("|") + 1 for word in phonemes.split()))
        for row in rows
        for line, phonemes in zip(
            row["text"].split(" / "), row["text_phonemes"].split(" / "), strict=True
        )
    ]


def main(source: Path) -> None:
    """Print the share of lines counted right, and how the others are missed."""
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
