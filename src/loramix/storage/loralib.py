"""Import of the reference's checkpoints: LoRA matrices as loralib saves them, and the parameters of
its gates.

    LoRA    encoder.block.0.layer.0.SelfAttention.q.lora_A                                  (rank,
    input), and lora_B gates
    encoder.block.0.layer.0.SelfAttention.q.context_gated_mixing.lin1.weight        (hidden, input)
            encoder.block.0.layer.0.SelfAttention.q.context_gated_mixing.output.weight
            (experts, hidden)

They are pickled files, read with `weights_only=True`, which refuses everything but tensors.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from loramix.config import GateConfig
from loramix.errors import CheckpointError, ExpertError
from loramix.mixture.model import MixtureModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MARK = ".context_gated_mixing."
_LORA = (".lora_A", ".lora_B")
_GATE = {f"{_MARK}lin1.weight": "lift.weight", f"{_MARK}output.weight": "score.weight"}


def import_mixture(
    base: "str | Path | PreTrainedModel",
    experts: Mapping[str, str | Path],
    gates: str | Path,
    path: str | Path,
    *,
    alpha: float = 1.0,
) -> None:
    """Write a mixture with the reference gate to folder `path`.

    experts: a file with loralib's matrices for every expert, in the order of the gates' outputs.
    gates: a file with the parameters of the gates; may be one of a whole model, of which the rest
        is not read.
    alpha: loralib's `lora_alpha`, which its files do not hold: updates are scaled by alpha / rank.

    Raises ExpertError or CheckpointError if a file is no such checkpoint.
    """
    with TemporaryDirectory() as folder:
        folders = {}
        for index, (name, file) in enumerate(experts.items()):
            folders[name] = Path(folder) / str(index)
            _write_adapter(name, Path(file), folders[name], alpha=alpha)
        state = _gate_state(Path(gates), len(experts))
        hidden = next(value.shape[0] for key, value in state.items() if key.endswith("lift.weight"))
        config = GateConfig.reference().model_copy(update={"hidden": hidden})
        mixture = MixtureModel.from_experts(base, folders, gate=config)
        mixture.experts = tuple(
            replace(expert, source=str(file))
            for expert, file in zip(mixture.experts, experts.values(), strict=True)
        )
        own = mixture.gate_state()
        priors = {key: value for key, value in own.items() if key.endswith(".prior")}
        mixture.load_gate_state({**state, **priors})
        mixture.save_pretrained(path)


def _write_adapter(name: str, file: Path, folder: Path, *, alpha: float) -> None:
    """Write loralib's matrices as a PEFT adapter."""
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
    save_file(tensors, folder / "adapter_model.safetensors")


def _gate_state(file: Path, experts: int) -> dict[str, Tensor]:
    """Return the gates' parameters under loramix's names."""
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
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
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
    """Return the state dict that training scripts put beside an optimizer's under one of these
    keys.
    """
    for key in keys:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content
