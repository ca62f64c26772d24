"""Damaged and hostile adapters, mixtures and checkpoints: one error in words, or what was meant.

    python tests/trials/hostile_inputs.py [--count 2000] [--seed 0]

Any exception that is no LoramixError is a failure, and so is a case of more than 20 s.
"""

import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import trial

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import save_expert, tiny_model
from hostile import copied, damage, resealed

from loramix import MixtureModel
from loramix.errors import LoramixError
from loramix.storage.format import pull
from loramix.storage.loralib import read_gates, write_adapter

torch.set_num_threads(1)
_LONGEST = 20  # seconds


class TooSlowError(Exception):
    """A case that takes too long."""


def made(root: Path) -> dict[str, Path]:
    """Return a folder of every kind that is damaged."""
    for name in "ab":
        save_expert(root / name, "llama", seed=ord(name), alpha_pattern={"q_proj": 4})
    mixture = MixtureModel.from_experts(tiny_model("llama"), {"a": root / "a", "b": root / "b"})
    mixture.save_pretrained(root / "mixture")
    (root / "loralib").mkdir()
    layer = "model.layers.0.q"
    matrices = {f"{layer}.lora_A": torch.ones(2, 8), f"{layer}.lora_B": torch.ones(8, 2)}
    torch.save(matrices, root / "loralib" / "adapter.pt")
    gates = {"lin1.weight": torch.ones(4, 8), "output.weight": torch.ones(2, 4)}
    named = {f"{layer}.context_gated_mixing.{key}": value for key, value in gates.items()}
    torch.save(named, root / "loralib" / "gates.pt")
    return {name: root / name for name in ("a", "mixture", "loralib")}


def tried(kind: str, folder: Path, draw: random.Random, scratch: Path) -> None:
    """Do with a damaged folder what users do with whole ones."""
    if kind == "a":
        MixtureModel.from_experts(tiny_model("llama"), {"a": folder})
    elif kind == "mixture":
        if draw.random() < 0.2:
            pull(str(folder), scratch / "pulled")
        else:
            MixtureModel.from_pretrained(folder, tiny_model("llama"))
    else:
        shutil.rmtree(scratch / "converted", ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        write_adapter("a", folder / "adapter.pt", scratch / "converted", alpha=1.0)
        read_gates(folder / "gates.pt", 2)


def _too_slow(number: int, frame: object) -> None:
    raise TooSlowError


def main() -> None:
    signal.signal(signal.SIGALRM, _too_slow)
    count, seed = trial.count(2000), trial.seed()
    found: Counter[str] = Counter()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        whole = made(root)
        for case in range(count):
            draw = random.Random(f"{seed}-{case}")
            kind = draw.choices(["a", "mixture", "loralib"], [4, 5, 1])[0]
            folder = copied(whole[kind], root / "damaged")
            done = damage(folder, draw)
            if kind == "mixture" and draw.random() < 0.8:
                resealed(folder)
            signal.alarm(_LONGEST)
            try:
                tried(kind, folder, draw, root / "scratch")
                found["taken"] += 1
            except LoramixError:
                found["refused in words"] += 1
            except Exception:
                found["failed"] += 1
                print(f"case {case} ({kind}): {done}", traceback.format_exc(), sep="\n")
            finally:
                signal.alarm(0)
            if case % 100 == 99:
                print(f"so far {case + 1}: {dict(found)}", flush=True)
    trial.report("hostile inputs", count, found, failures=("failed",))


if __name__ == "__main__":
    main()
