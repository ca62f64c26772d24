"""What trials share: their counts, and how they end."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache


@cache
def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def count(usual: int) -> int:
    """Return how many cases are asked for."""
    asked: int | None = _arguments().count
    return usual if asked is None else asked


def seed() -> int:
    """Return the seed by which the cases are drawn."""
    return int(_arguments().seed)


def report(name: str, cases: int, found: Mapping[str, int], *, failures: Sequence[str]) -> None:
    """Print what came out, and exit with 1 if anything failed."""
    listed = ", ".join(f"{number} {what}" for what, number in sorted(found.items()))
    failed = sum(found.get(each, 0) for each in failures)
    print(f"{name}: {cases} cases: {listed}; {failed} failures", flush=True)
    sys.exit(1 if failed else 0)
