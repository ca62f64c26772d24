"""Several runs and savers in one folder at once: one works, the others are told or wait.

    python tests/trials/concurrent_runs.py [--count 20] [--seed 0]

In every round three processes run three recipes in one folder, of which one waits for the others;
and three save three mixtures to one folder. Whoever is refused must be told by whom, and what is
left must be one recipe's whole work.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import trial

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import save_expert, tiny_model

from loramix import MixtureModel
from loramix.data.samples import read_manifest
from loramix.errors import BusyError
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe
from loramix.storage.format import load

_DONE, _BUSY, _FAILED = 0, 3, 4


def together(works: list[Callable[[], object]]) -> list[int]:
    """Do all works at once, each in a process of its own; return how they ended."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            os._exit(outcome(work))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def outcome(work: Callable[[], object]) -> int:
    try:
        work()
    except BusyError as error:
        told = "process" in str(error) and "since" in str(error)
        # between taking a lock and writing down who has it lies a moment
        return _BUSY if told or "another process" in str(error) else _FAILED
    except BaseException as error:
        print(f"ended with {error!r}", flush=True)
        return _FAILED
    return _DONE


def runs(root: Path, draw: random.Random) -> tuple[list[int], bool]:
    counts = [12, 14, 16]
    draw.shuffle(counts)

    def work(samples: int, *, wait: bool) -> None:
        recipe = load_recipe("tiny", [f"samples={samples}"])
        runner.run(recipe, root, stage="prepare", wait=wait)

    ended = together(
        [
            lambda n=n, wait=wait: work(n, wait=wait)
            for n, wait in zip(counts, (0, 0, 1), strict=True)
        ]
    )
    left = len(read_manifest(root / "data" / "samples.parquet"))
    marker = json.loads((root / ".stages" / "prepare.json").read_text())
    return ended, marker["finished"] and left in (24, 28, 32) and not (root / ".lock").exists()


def saves(root: Path, mixtures: list[MixtureModel]) -> tuple[list[int], bool]:
    folder = root / "saved"
    ended = together([lambda m=m: m.save_pretrained(folder) for m in mixtures])
    names = [expert.name for expert in load(folder).experts]
    return ended, names in (["a"], ["b"], ["a", "b"]) and [
        path.name for path in root.iterdir()
    ] == ["saved"]


def main() -> None:
    rounds, seed = trial.count(20), trial.seed()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        places = {name: save_expert(root / name, "llama", seed=ord(name)) for name in "ab"}
        mixtures = [
            MixtureModel.from_experts(tiny_model("llama"), {n: places[n] for n in names})
            for names in ("a", "b", "ab")
        ]
        for number in range(rounds):
            draw = random.Random(f"{seed}-{number}")
            for kind in ("runs", "saves"):
                place = root / f"{kind}-{number}"
                ended, whole = runs(place, draw) if kind == "runs" else saves(place, mixtures)
                found[f"{kind} done"] += ended.count(_DONE)
                found[f"{kind} told to wait"] += ended.count(_BUSY)
                found["failed"] += len(ended) - ended.count(_DONE) - ended.count(_BUSY)
                found["wrong results"] += not whole
    trial.report("concurrent runs", rounds, found, failures=("failed", "wrong results"))


if __name__ == "__main__":
    main()
