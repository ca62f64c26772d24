"""A copy of the base with updates merged into its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.linear import is_offloaded, is_transposed
from loramix.storage.experts import LowRank
from loramix.storage.files import atomic_folder, check_replaceable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_merged(
    base: "PreTrainedModel",
    layers: Mapping[str, nn.Module],
    updates: Mapping[str, LowRank],
    path: Path,
) -> None:
    """Write the base with updates merged into it to folder `path`: a model that needs neither
    loramix nor PEFT.

    layers: the base's own linear layers, by the names under which it holds their mixtures.
    """
    check_replaceable(path, "config.json")
    merged = _merged(base, layers, updates)
    with atomic_folder(path) as folder:
        merged.save_pretrained(folder)


def _merged(
    base: "PreTrainedModel", layers: Mapping[str, nn.Module], updates: Mapping[str, LowRank]
) -> "PreTrainedModel":
    """Return a copy of the base that shares all weights but those of the adapted layers."""
    if any(is_offloaded(module) for module in base.modules()):
        raise MixtureError(
            "the base is offloaded to memory or disk, so nothing can be merged into it; export an "
            "adapter, or load the base without device_map"
        )
    inner = tuple(f"{name}." for name in layers)
    state = {key: value for key, value in base.state_dict().items() if not key.startswith(inner)}
    for name, layer in layers.items():
        weight = getattr(layer, "weight", None)  # some quantised layers have none
        floating = isinstance(weight, Tensor) and weight.is_floating_point()
        if not isinstance(weight, Tensor) or not floating or type(weight.data) is not Tensor:
            raise MixtureError(
                f"layer '{name}' is quantised, so nothing can be merged into it; export an adapter"
            )
        state |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
        delta = updates[name].scale * updates[name].up_OR @ updates[name].down_RD
        delta = (delta.T if is_transposed(layer) else delta).to(weight.device)
        state[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    with torch.device("meta"):
        merged = type(base)(base.config)
    merged.load_state_dict(state, assign=True)
    merged.tie_weights()
    merged.generation_config = base.generation_config
    return merged
