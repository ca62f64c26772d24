"""Runs killed at random moments end as if nothing had happened, in every byte.

    python tests/trials/killed_runs.py [--count 200] [--seed 0]

count: of kills. A run is killed five times at random moments of what is left of it, then ends; all
that it has written is compared with a run that nobody killed.
"""

import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import trial

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from loramix.cli.display import silence_libraries
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe

_KILLS = 5  # of one run
SMALL = [
    *("samples=40", "generation.test_samples=2", "gate.init=zero", "gate.balance=0.1"),
    *("tasks.haiku.max_new_tokens=4", "tasks.title.max_new_tokens=4"),
    *("finetune.epochs=2", "lora.epochs=2", "gate.epochs=2", "lora.dropout=0.1"),
    *("finetune.train_samples=12", "lora.train_samples=12", "gate.train_samples=12"),
    *("finetune.validation_samples=2", "lora.validation_samples=2", "gate.validation_samples=2"),
]


def started(root: Path) -> int:
    """Start a run in a process of its own, which has the libraries loaded; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        runner.run(load_recipe("tiny", SMALL), root)
    except BaseException as error:
        print(f"a run ended with {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".l")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def killed(root: Path, draw: random.Random, seconds: float, kills: int) -> int:
    """Run to the end with some kills on the way; return how many hit a run that went on."""
    hits = 0
    for _ in range(kills):
        child = started(root)
        time.sleep(draw.uniform(0, seconds * 0.8))
        os.kill(child, 9)
        hits += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    child = started(root)
    if os.waitpid(child, 0)[1]:
        return -1
    return hits


def main() -> None:
    kills, seed = trial.count(200), trial.seed()
    silence_libraries()
    found: Counter[str] = Counter()
    with TemporaryDirectory() as temporary:
        began = time.monotonic()
        root = Path(temporary) / "run"  # one place: mixtures say where their experts come from
        os.waitpid(started(root), 0)
        seconds = time.monotonic() - began
        whole = content(root)
        print(f"a whole run takes {seconds:.1f} s and leaves {len(whole)} files", flush=True)
        number = 0
        while found["kills"] < kills:
            draw = random.Random(f"{seed}-{number}")
            shutil.rmtree(root)
            hits = killed(root, draw, seconds, min(_KILLS, kills - found["kills"]))
            ended = content(root)
            differ = sorted(key for key in whole | ended if whole.get(key) != ended.get(key))
            found["kills"] += max(hits, 0)
            found["runs"] += 1
            found["runs equal in every byte" if not differ else "runs that differ"] += 1
            if hits < 0 or differ:
                print(f"run {number}: {differ[:10]}", flush=True)
            number += 1
            print(f"so far: {dict(found)}", flush=True)
    trial.report("killed runs", found["kills"], found, failures=("runs that differ",))


if __name__ == "__main__":
    main()
