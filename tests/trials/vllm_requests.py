"""Many requests of mixed length to the vLLM engine, each compared with `MixtureModel.generate`.

    python tests/trials/vllm_requests.py                  200 requests each, some minutes
    python tests/trials/vllm_requests.py --compiled       with vLLM's compilation

In vLLM's own environment (`make vllm-test` makes it). Requests arrive at random, 1, 4 and 16 at
once, a fifth of them with weights by hand, with a third of the cache blocks that 16 of the longest
would need. Prints a line for each; exits with 1 if an answer is not that of `generate`, a
log-probability is further off than 1e-3, or no request has lost its cache.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "vllm_engine")]

from vllm_bases import save_mixture  # noqa: E402
from vllm_running import Asked, alone, answer, compared, drawn, preemptions, started  # noqa: E402

CONTEXTS, ACTIVATIONS, AT_ONCE = ("prompt", "running", "token"), ("softmax", "top-k"), (1, 4, 16)
BLOCKS, CLOSE = 32, 1e-3  # 16 requests of the longest kind fill 96 blocks


class Tried(NamedTuple):
    """How requests went, so many at once.

    wrong: answers that are not those of `generate`. worst: how far a log-probability is off in the
        others. lost: how often a request has lost its cache.
    """

    at_once: int
    requests: int
    wrong: int
    worst: float
    lost: float


def main() -> int:
    """Ask, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    print("| gates | at once | requests | wrong | log-probabilities off by | lost their caches |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    fine = True
    for context, activation in product(CONTEXTS, ACTIVATIONS):
        with tempfile.TemporaryDirectory() as folder:
            mixture = save_mixture(Path(folder), context=context, activation=activation)
            right = alone(mixture, drawn(given.requests))
            tried = trial(Path(folder) / "mixture", right, eager=not given.compiled)
            fine &= report(f"{context}, {activation}", tried)
    return 0 if fine else 1


def trial(mixture: Path, right: Sequence[Asked], *, eager: bool) -> list[Tried]:
    """Ask the same requests of one engine, so many at once as there are entries."""
    tried, lost = [], 0
    settings = {"max_num_seqs": max(AT_ONCE), "num_gpu_blocks_override": BLOCKS}
    with started(mixture, eager=eager, **settings) as llm:
        for at_once in AT_ONCE:
            asked = drawn(len(right))
            answer(llm, asked, at_once=at_once)
            wrong, worst = compared(asked, right)
            tried.append(Tried(at_once, len(asked), wrong, worst, preemptions(llm) - lost))
            lost = preemptions(llm)
    return tried


def report(gates: str, tried: Sequence[Tried]) -> bool:
    """Print a line for each, and return whether all is right and caches have been lost."""
    for each in tried:
        counts = (
            f"{each.at_once} | {each.requests} | {each.wrong} | {each.worst:.1e} | {each.lost:.0f}"
        )
        print(f"| {gates} | {counts} |", flush=True)
    exact = all(each.wrong == 0 and each.worst < CLOSE for each in tried)
    return exact and any(each.lost > 0 for each in tried)


if __name__ == "__main__":
    sys.exit(main())
