"""Checkpoints of the reference: LoRA matrices as loralib saves them, and the parameters of gates.

    LoRA    encoder.block.0.layer.0.SelfAttention.q.lora_A               (rank, input), and lora_B
    gates   encoder.block.0.layer.0.SelfAttention.q.context_gated_mixing.lin1.weight
            (hidden, input)
            encoder.block.0.layer.0.SelfAttention.q.context_gated_mixing.output.weight
            (experts, hidden)

They are pickled files, read with `weights_only=True`, which refuses everything but tensors.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from loramix.errors import CheckpointError, ExpertError
from loramix.storage.adapter_config import settle

_MARK = ".context_gated_mixing."
_LORA = (".lora_A", ".lora_B")
_GATE = {f"{_MARK}lin1.weight": "lift.weight", f"{_MARK}output.weight": "score.weight"}


def write_adapter(name: str, file: Path, folder: Path, *, alpha: float) -> None:
    """Write the matrices of one file to a new folder, as the PEFT adapter of expert `name`.

    alpha: loralib's `lora_alpha`, which its files do not hold: updates are scaled by alpha / rank.
    Raises ExpertError or CheckpointError if the file holds no such matrices.
    """
    if not math.isfinite(alpha):
        raise ExpertError(f"expert '{name}': alpha is {alpha}, which is no number")
    state = _read(file)
    layers = [key.removesuffix(_LORA[0]) for key in state if key.endswith(_LORA[0])]
    if not layers:
        raise ExpertError(
            f"expert '{name}': {file} holds no loralib matrices, such as "
            f"'….SelfAttention.q{_LORA[0]}'"
        )
    unpaired = [layer for layer in layers if layer + _LORA[1] not in state]
    if unpaired:
        raise ExpertError(
            f"expert '{name}': {file} holds '{unpaired[0]}{_LORA[0]}' without its '{_LORA[1]}'"
        )
    ranks = {state[layer + _LORA[0]].shape[0] for layer in layers}
    if len(ranks) > 1:
        raise ExpertError(
            f"expert '{name}': {file} holds matrices of ranks {sorted(ranks)}; loralib has one "
            "for all"
        )
    rank = ranks.pop()
    tensors = {
        f"base_model.model.{layer}{matrix}.weight": state[layer + matrix].contiguous()
        for layer in layers
        for matrix in _LORA
    }
    folder.mkdir()
    LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=layers, inference_mode=True
    ).save_pretrained(str(folder))
    settle(folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def read_gates(file: Path, experts: int) -> dict[str, Tensor]:
    """Return the parameters of the gates under loramix's names; the rest of a whole model is left.

    Raises CheckpointError if the file holds no gates, or gates of another number of experts.
    """
    state = _read(file)
    found = {
        f"{key.removesuffix(theirs)}.{ours}": value
        for key, value in state.items()
        for theirs, ours in _GATE.items()
        if key.endswith(theirs)
    }
    odd = [key for key in state if _MARK in key and not key.endswith(tuple(_GATE))]
    if odd:
        raise CheckpointError(f"{file} holds '{odd[0]}', which the reference gate does not have")
    if not found:
        raise CheckpointError(
            f"{file} holds no gates, such as '….SelfAttention.q{next(iter(_GATE))}'"
        )
    counts = {value.shape[0] for key, value in found.items() if key.endswith("score.weight")}
    if counts != {experts}:
        raise CheckpointError(
            f"the gates of {file} weigh {sorted(counts)} experts, but {experts} are given"
        )
    return found


def _read(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(
            f"{file} holds more than tensors, or is no torch file: it is not read ({error})"
        ) from error
    state = _unwrapped(state, ("state_dict", "model_state_dict", "model"))
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise CheckpointError(f"{file} holds no state dict: a mapping from names to tensors")
    return state


def _unwrapped(content: object, keys: Sequence[str]) -> object:
    """Return the state dict under one of these keys, where training scripts put it beside an
    optimizer's.
    """
    for key in keys:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content
