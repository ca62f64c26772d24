"""Runs the variants of a benchmark, each in its own process, turn by turn: noise hits all of them
alike.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence


def report(
    script: str, variants: Sequence[str], *, rounds: int, arguments: Sequence[str] = ()
) -> None:
    """Run every variant `rounds` times and print medians, peak memory and ratios to the first
    variant.

    A variant's process prints one JSON object {unit: number} and its peak memory (`peak_gb`) as its
    last line.
    """
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for turn in range(rounds):
        for variant in variants:
            command = [sys.executable, script, "--variant", variant, *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"round {turn + 1} of {rounds}, {variant}: {results[variant][-1]}", file=sys.stderr
            )
    units = list(results[variants[0]][0])
    first = {unit: statistics.median(each[unit] for each in results[variants[0]]) for unit in units}
    print("| variant |", " | ".join(f"{unit} | ratio" for unit in units), "|")
    print("| --- |" + " ---: | ---: |" * len(units))
    for variant, runs in results.items():
        middle = {unit: statistics.median(each[unit] for each in runs) for unit in units}
        cells = [f"{middle[unit]:.2f} | {middle[unit] / first[unit]:.2f}" for unit in units]
        print(f"| {variant} |", " | ".join(cells), "|")


def finish(work: Callable[[], dict[str, float]]) -> None:
    """Do the work of one variant and print its numbers with this process's peak memory in GB."""
    numbers = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    print(
        json.dumps(
            {
                **{unit: round(value, 3) for unit, value in numbers.items()},
                "peak_gb": round(peak, 2),
            }
        )
    )
