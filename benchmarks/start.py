"""Processor time of `import loramix` and `loramix --help` beyond Python's own start.

python benchmarks/start.py
"""

import resource
import statistics
import subprocess
import sys

ROUNDS = 15
HELP = "import sys; sys.argv = ['loramix', '--help']; from loramix.cli.main import main; main()"
WORK = {"Python": "pass", "import loramix": "import loramix", "loramix --help": HELP}
LIMITS = {"import loramix": 0.1, "loramix --help": 0.3}


def seconds(code: str) -> float:
    """Return the processor time of a process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the medians; the variants take turns."""
    found: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(ROUNDS):
        for name, code in WORK.items():
            found[name].append(seconds(code))
    own = statistics.median(found["Python"])
    for name, limit in LIMITS.items():
        beyond = statistics.median(found[name]) - own
        verdict = "holds" if beyond <= limit else "does not hold"
        print(f"{name}: {beyond:.3f} s beyond Python's {own:.3f} s; at most {limit}: {verdict}")


if __name__ == "__main__":
    main()
