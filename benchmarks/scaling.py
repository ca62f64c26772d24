"""Wall time of one recipe by one process, by two that train together, and on Ray.

    python benchmarks/scaling.py [tiny] [--ways "one process" "Ray" …] [KEY=VALUE …]

Every way runs the whole recipe once, from an empty folder, one thread for each process; Ray has
as many workers as the machine has processors. Beside the time, the start of all processes included,
stand the CSV files that are not those of one process, byte for byte, and how far their numbers are
from its numbers at most.
"""

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [sys.executable, "-m", "loramix", "run"]
TOGETHER = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "loramix", "run"]
WAYS = {
    "one process": (RUN, []),
    "two processes together": ([sys.executable, *TOGETHER], []),
    "Ray": (RUN, ["--cluster"]),
    "Ray, all done before": (RUN, ["--cluster"]),
}


def seconds(way: str, arguments: list[str], root: Path) -> float:
    """Run a recipe in one way into `root`; return the seconds that it took."""
    command, options = WAYS[way]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *arguments, "--out", str(root), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{way}: {done.stderr}")
    return time.monotonic() - began


def differences(one: Path, other: Path) -> tuple[int, int, float]:
    """Return how many CSV files there are, how many differ, and by how much numbers do at most."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.csv"))
    differ = [file for file in files if (one / file).read_bytes() != (other / file).read_bytes()]
    return len(files), len(differ), max((furthest(one / f, other / f) for f in differ), default=0.0)


def furthest(one: Path, other: Path) -> float:
    """Return how far numbers of two CSV files are from each other; infinity for other texts."""
    found = 0.0
    with one.open(newline="") as left, other.open(newline="") as right:
        rows = list(zip(csv.reader(left), csv.reader(right), strict=False))
    for cells in rows:
        for here, there in zip(*cells, strict=False):
            if here != there:
                try:
                    found = max(found, abs(float(here) - float(there)))
                except ValueError:
                    return math.inf
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?", default="tiny")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    print(f"{options.recipe}, {os.cpu_count()} processors\n")
    print("| | wall, s | CSV files that differ | by at most |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        one = Path(temporary) / "one process"
        for way in options.ways:
            root = Path(temporary) / way.partition(",")[0]
            taken = seconds(way, [options.recipe, *options.overrides], root)
            compared = "| |"
            if one.is_dir() and way != "one process":
                files, differ, most = differences(one, root)
                compared = f"{differ} of {files} | {most:.2g} |"
            print(f"| {way} | {taken:.0f} | {compared}", flush=True)


if __name__ == "__main__":
    main()
