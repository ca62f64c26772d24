"""A mixture within a checkpoint of transformers' Trainer, beside the state of its optimizer.

checkpoint-100/
  mixture_config.json …         the files of a saved mixture, see `loramix.storage.format`
  model.safetensors.index.json  by which Trainer finds the gates' parameters: that they lie in
                                gate.safetensors
  optimizer.pt …                Trainer's own
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from loramix.storage.files import write_text
from loramix.storage.format import GATES, Parts, save
from loramix.storage.manifest import CONFIG
from loramix.storage.replacing import scratch

INDEX = "model.safetensors.index.json"
CARD = "README.md"


def save_in_checkpoint(
    parts: Parts,
    folder: Path,
    names: Mapping[str, str],
    *,
    experts: Literal["copy", "reference"] = "copy",
) -> None:
    """Write a mixture to a folder that holds other files as well; a model card there stays.

    Until all files of the mixture are there, the folder holds no configuration of one.

    names: of the gates' parameters in the whole model, by those in `parts.gate_state`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(folder / "mixture") as temporary:
        mixture = temporary / "mixture"
        save(parts, mixture, experts=experts)
        (folder / CONFIG).unlink(missing_ok=True)
        if (folder / CARD).exists():
            (mixture / CARD).unlink()
        for entry in sorted(mixture.iterdir(), key=lambda entry: entry.name == CONFIG):
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
    size = sum(tensor.nbytes for tensor in parts.gate_state.values())
    shards = dict.fromkeys(names.values(), GATES)
    index = {"metadata": {"total_size": size}, "weight_map": shards}
    write_text(folder / INDEX, json.dumps(index, indent=2))
