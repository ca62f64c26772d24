"""Compares two files of `speed.py` and prints the systems that have become slower.

    python benchmarks/regression.py old/speed.json new/speed.json [--tolerance 0.05]

It compares ratios to the first system of a case, not seconds, so the files may come from different
machines of one kind. The exit status is 1 if a ratio has grown by more than the tolerance and by
more than both files' spread over the rounds.
"""

import argparse
import json
import sys
from pathlib import Path

from speed_report import Row, ratio

Key = tuple[str, str, int]


def ratios(path: Path) -> dict[Key, tuple[float, float, float]]:
    """Return the ratio of every row to the first of its case: median, least and largest."""
    rows: list[Row] = json.loads(path.read_text())["rows"]
    first: dict[object, Row] = {}
    for row in rows:
        first.setdefault(row["case"], row)
    found: dict[Key, tuple[float, float, float]] = {}
    for row in rows:
        key = str(row["case"]), str(row["system"]), int(str(row["experts"]))
        found[key] = ratio(row, first[row["case"]])
    return found


def main() -> int:
    """Print the differences and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.05)
    options = parser.parse_args()
    old, new = ratios(options.old), ratios(options.new)
    common = [key for key in old if key in new]
    if not common:
        print("the files have no row in common", file=sys.stderr)
        return 2
    slower = 0
    for key in common:
        (before, _, before_high), (after, after_low, _) = old[key], new[key]
        change = after / before - 1
        if abs(change) > options.tolerance:
            worse = change > 0 and after_low > before_high
            slower += worse
            verdict = "SLOWER" if worse else "slower, within the spread" if change > 0 else "faster"
            case, system, experts = key
            row = f"{system}, E={experts}, {case}"
            print(f"{verdict:26} {before:.3f} to {after:.3f} ({change:+.1%})  {row}")
    limit = f"{options.tolerance:.0%}"
    print(f"{len(common)} rows compared, {slower} slower by more than {limit} and the spread")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
