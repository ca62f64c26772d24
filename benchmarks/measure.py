"""Runs the variants of a benchmark in turn, each in a process of its own: all meet the noise."""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence


def report(
    script: str, variants: Sequence[str], *, rounds: int, arguments: Sequence[str] = ()
) -> None:
    """Run every variant `rounds` times; print medians, peak memory and ratios to the first variant.

    The last line that a variant's process prints is one JSON object, {unit: number}, with its peak
    memory as `peak_gb`.
    """
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for turn in range(rounds):
        for variant in variants:
            command = [sys.executable, script, "--variant", variant, *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            results[variant].append(found)
            print(f"round {turn + 1} of {rounds}, {variant}: {found}", file=sys.stderr)
    units = list(results[variants[0]][0])
    first = _medians(results[variants[0]])
    print("| variant |", " | ".join(f"{unit} | ratio" for unit in units), "|")
    print("| --- |" + " ---: | ---: |" * len(units))
    for variant, runs in results.items():
        middle = _medians(runs)
        cells = [f"{middle[unit]:.2f} | {middle[unit] / first[unit]:.2f}" for unit in units]
        print(f"| {variant} |", " | ".join(cells), "|")


def finish(work: Callable[[], dict[str, float]]) -> None:
    """Do the work of one variant and print its numbers with this process's peak memory in GB."""
    numbers = {unit: round(value, 3) for unit, value in work().items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    print(json.dumps(numbers | {"peak_gb": round(peak, 2)}))


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    medians: dict[str, float] = {}
    for unit in runs[0]:
        medians[unit] = statistics.median(run[unit] for run in runs)
    return medians
