"""Saves killed at random moments: what stands there is whole, and the next save sweeps the rest.

    python tests/trials/killed_saves.py [--count 500] [--seed 0]

A process saves two mixtures over each other again and again until it is killed; another one reads
meanwhile. Every second case is of a system that cannot exchange two names at once.
"""

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import trial

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import save_expert, strengthen, tiny_model

from loramix import MixtureModel
from loramix.errors import LoramixError
from loramix.storage import replacing
from loramix.storage.format import load

_LONGEST = 0.25  # seconds until a kill


def save_for_ever(mixtures: list[MixtureModel], folder: Path, *, exchanges: bool) -> None:
    if not exchanges:
        replacing.exchange = lambda one, other: False
    while True:
        for mixture in mixtures:
            mixture.save_pretrained(folder)


def case(mixtures: list[MixtureModel], folder: Path, draw: random.Random, exchanges: bool) -> str:
    """Kill one process as it saves, reading until then; return what came out."""
    end = time.monotonic() + draw.uniform(0, _LONGEST)
    child = os.fork()
    if child == 0:
        save_for_ever(mixtures, folder, exchanges=exchanges)
    try:
        while time.monotonic() < end:
            load(folder)
    except (LoramixError, OSError) as error:
        print(f"while it was saved: {error}")
        return "failed readers"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    try:
        found = {expert.name for expert in load(folder).experts}
    except (LoramixError, OSError) as error:
        print(f"after the kill: {error}")
        return "lost"
    rests = len(list(folder.parent.iterdir())) > 1
    mixtures[0].save_pretrained(folder)
    beside = [path.name for path in folder.parent.iterdir() if path != folder]
    if found not in ({"a"}, {"a", "b"}) or beside:
        print(f"found {found}, beside it {beside}")
        return "not swept"
    return "whole, rests swept" if rests else "whole"


def main() -> None:
    count, seed = trial.count(500), trial.seed()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in "ab":
            save_expert(root / name, "llama", seed=ord(name))
        mixtures = [
            strengthen(MixtureModel.from_experts(tiny_model("llama"), {n: root / n for n in names}))
            for names in ("a", "ab")
        ]
        (root / "out").mkdir()
        folder = root / "out" / "saved"
        mixtures[0].save_pretrained(folder)
        for number in range(count):
            draw = random.Random(f"{seed}-{number}")
            found[case(mixtures, folder, draw, exchanges=number % 2 == 0)] += 1
    trial.report("killed saves", count, found, failures=("lost", "not swept", "failed readers"))


if __name__ == "__main__":
    main()
