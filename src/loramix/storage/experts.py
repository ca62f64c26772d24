"""Experts: LoRA adapters read from PEFT's files, refused by name where they cannot be mixed
exactly.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from loramix.errors import ExpertError, HubError, did_you_mean
from loramix.storage.hub import Found, find

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
PREFIX = "base_model.model."  # before the base's names, in the names of PEFT's tensors
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_OUTPUT = ("lm_head.", "embed_out.")
_MARKS = {  # in the names of tensors that are no low-rank update of a linear layer
    "dora": ("lora_magnitude_vector",),
    "embeddings": (
        "lora_embedding_",
        ".base_layer.weight",
    ),  # PEFT saves a copy of adapted embeddings
    "token_rows": ("token_adapter", "trainable_tokens"),
    "bias": (".bias",),
}


LOSSY = {
    "dora": "DoRA's magnitudes (use_dora)",
    "bias": "trained biases (bias, lora_bias)",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "token_rows": "trained token rows (trainable_token_indices)",
    "embeddings": "low-rank updates of embeddings",
    # it computes some tokens' logits alone: no gate can read there
    "lm_head": "a low-rank update of the output layer",
}


@dataclass(frozen=True)
class LowRank:
    """One expert's update of one layer: scale · up @ down."""

    down_RD: Float[Tensor, "R D"]
    up_OR: Float[Tensor, "O R"]
    scale: float


@dataclass(frozen=True)
class Expert:
    """One adapter: its updates by the names of the layers that it adapts, and the folder that it
    was read from.

    lossy: the parts of the adapter that were left out, as named in `LOSSY`.
    revision: the commit of an adapter from the Hub.
    """

    name: str
    source: str
    folder: Path
    updates: Mapping[str, LowRank]
    lossy: tuple[str, ...] = ()
    revision: str | None = None


def load_expert(
    name: str, source: str | Path, *, revision: str | None = None, lossy: Sequence[str] = ()
) -> Expert:
    """Read a PEFT LoRA adapter from a folder, or from a Hub id at `revision`.

    Raises ExpertError if it is no LoRA adapter, or holds more than low-rank updates of linear
    layers. Parts named in `lossy` are left out instead: the expert is then not the adapter that was
    trained.
    """
    for part in lossy:
        if part not in LOSSY:
            raise ExpertError(
                f"lossy: there is no part '{part}'{did_you_mean(part, LOSSY)}; it can name "
                f"{list(LOSSY)}"
            )
    folder, revision = _folder(name, str(source), revision)
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ExpertError(
            f"expert '{name}' is a {config.peft_type} adapter; only LoRA adapters can be mixed"
        )
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    parts = {key: _part(key, config) for key in tensors}
    _refuse(name, config, parts, lossy)
    kept = {key: tensor for key, tensor in tensors.items() if parts[key] == "update"}
    if not kept:
        raise ExpertError(f"expert '{name}' holds no low-rank update of a linear layer")
    layers = [key.removeprefix(PREFIX).removesuffix(_DOWN) for key in kept if key.endswith(_DOWN)]
    updates = {layer: _update(layer, kept, config) for layer in layers}
    return Expert(
        name, str(source), folder, updates, tuple(part for part in LOSSY if part in lossy), revision
    )


def _folder(name: str, source: str, revision: str | None) -> Found:
    """Return the adapter's folder and, if it comes from the Hub, its commit."""
    try:
        found = find(source, revision=revision, files=["adapter_*"])
    except HubError as error:
        raise ExpertError(
            f"expert '{name}': there is no adapter '{source}': it is {error}"
        ) from error
    for file in ADAPTER_FILES:
        if not (found.folder / file).is_file():
            raise ExpertError(
                f"expert '{name}': {found.folder} holds no {file}; an expert is a PEFT adapter "
                "folder with both"
            )
    return found


def _part(key: str, config: LoraConfig) -> str:
    """Return which part of an adapter a tensor belongs to: an `update`, one of `LOSSY`, or
    `unknown`.
    """
    layer = key.removeprefix(PREFIX)
    if any(
        re.search(rf"(^|\.){re.escape(module)}\.", layer) for module in config.modules_to_save or ()
    ):
        return "modules_to_save"
    if layer.startswith(_OUTPUT):
        return "lm_head"
    if key.endswith((_DOWN, _UP)):
        return "update"
    for part, marks in _MARKS.items():
        if any(mark in key for mark in marks):
            return part
    return "unknown"


def _refuse(name: str, config: LoraConfig, parts: Mapping[str, str], lossy: Sequence[str]) -> None:
    """Refuse what a sum of low-rank updates of linear layers cannot express, unless it may be left
    out.
    """
    if config.layer_replication:
        raise ExpertError(
            f"expert '{name}' repeats layers (layer_replication), which this base does not have"
        )
    unknown = [key for key, part in parts.items() if part == "unknown"]
    if unknown:
        raise ExpertError(
            f"expert '{name}' holds '{unknown[0]}' ({len(unknown)} such tensors), which is no "
            "low-rank update of a "
            "linear layer"
        )
    for part, what in LOSSY.items():
        keys = [key for key, found in parts.items() if found == part]
        if keys and part not in lossy:
            raise ExpertError(
                f"expert '{name}' holds {what}, which cannot be mixed exactly: '{keys[0]}' and "
                f"{len(keys) - 1} more; "
                f"to leave them out and lose what they add: lossy=['{part}']"
            )


def _update(layer: str, tensors: Mapping[str, Tensor], config: LoraConfig) -> LowRank:
    down_RD, up_OR = tensors[f"{PREFIX}{layer}{_DOWN}"], tensors[f"{PREFIX}{layer}{_UP}"]
    rank = down_RD.shape[0]
    alpha = config.alpha_pattern.get(
        get_pattern_key(list(config.alpha_pattern), layer), config.lora_alpha
    )
    return LowRank(down_RD, up_OR, alpha / (math.sqrt(rank) if config.use_rslora else rank))
