"""Many requests of mixed length to the vLLM engine, each compared with `MixtureModel.generate`.

    python tests/trials/vllm_requests.py                  200 requests each, some minutes
    python tests/trials/vllm_requests.py --compiled       with vLLM's compilation

In vLLM's own environment (`make vllm-test` makes it). Requests arrive at random, 1, 4 and 16 at
once, a fifth of them with weights by hand, with half the cache blocks that 16 would need. Prints a
line for each; exits with 1 if an answer is not that of `generate`, a log-probability is further off
than 1e-3, or no request has lost its cache.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "vllm_engine")]

from vllm_bases import save_mixture  # noqa: E402
from vllm_running import alone, answer, compared, drawn, preemptions, started  # noqa: E402

CONTEXTS, ACTIVATIONS, AT_ONCE = ("prompt", "running", "token"), ("softmax", "top-k"), (1, 4, 16)
BLOCKS, CLOSE = 48, 1e-3  # 16 requests of the longest kind fill 96 blocks


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
            right, lost = alone(mixture, drawn(given.requests)), 0
            settings = {"max_num_seqs": max(AT_ONCE), "num_gpu_blocks_override": BLOCKS}
            with started(Path(folder) / "mixture", eager=not given.compiled, **settings) as llm:
                for at_once in AT_ONCE:
                    asked = drawn(given.requests)
                    answer(llm, asked, at_once=at_once)
                    wrong, worst = compared(asked, right)
                    lost_now = preemptions(llm) - lost
                    lost += lost_now
                    counts = f"{len(asked)} | {wrong} | {worst:.1e} | {lost_now:.0f}"
                    print(f"| {context}, {activation} | {at_once} | {counts} |", flush=True)
                    fine = fine and wrong == 0 and worst < CLOSE
            fine = fine and lost > 0
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
