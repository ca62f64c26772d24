"""Experts: LoRA adapters read from PEFT's files, refused by name where they cannot be mixed
exactly.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from loramix.errors import ExpertError, did_you_mean
from loramix.storage.adapter_config import (
    EXACT_STARTS,
    patterns_of,
    rank_of,
    read_adapter_config,
    scale_of,
)
from loramix.storage.adapter_files import find_adapter, read_tensors
from loramix.storage.patterns import check_patterns

PREFIX = "base_model.model."  # before the base's names, in the names of PEFT's tensors
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
LOADED = "a loaded PeftModel"  # the source of experts that have no place to be read from again
_MARKS = {  # in the names of tensors that are no low-rank update of a linear layer
    "dora": ("lora_magnitude_vector",),
    "embeddings": ("lora_embedding_",),
    "token_rows": ("token_adapter", "trainable_tokens"),
    "bias": (".bias",),
}
_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LOSSY = {
    "dora": "DoRA's magnitudes (use_dora)",
    "bias": "trained biases (bias, lora_bias)",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "token_rows": "trained token rows (trainable_token_indices)",
    "embeddings": "low-rank updates of embeddings",
    # it computes some tokens' logits alone: no gate can read there
    "lm_head": "a low-rank update of the output layer",
    "vocabulary": "whole embedding or output matrices (of a resized vocabulary)",
    "target_parameters": "updates of fused expert weights or their router (target_parameters)",
}


@dataclass(frozen=True)
class LowRank:
    """One expert's update of one layer: scale · up @ down."""

    down_RD: Float[Tensor, "R D"]
    up_OR: Float[Tensor, "O R"]
    scale: float


@dataclass(frozen=True)
class Expert:
    """One adapter: its updates by the names of the layers that it adapts, and its files.

    revision: the commit of an adapter from the Hub.
    settings: as PEFT reads them.
    start: `pissa` or `olora` where the update counts from a base from which the first matrices
        were taken off; None where it counts from the base itself.
    whole: whole weights saved beside the low-rank ones, by name.
    lossy: the parts of the adapter that are left out, as named in `LOSSY`.
    """

    name: str
    source: str
    revision: str | None
    config_file: Path
    weights_file: Path
    settings: LoraConfig
    updates: Mapping[str, LowRank]
    start: str | None = None
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    lossy: tuple[str, ...] = ()


def load_expert(
    name: str,
    source: str | Path,
    *,
    revision: str | None = None,
    lossy: Sequence[str] = (),
    check: Callable[[Path], None] | None = None,
) -> Expert:
    """Read a PEFT LoRA adapter from a folder or from the Hub, see `find_adapter`.

    check: called with each of its files before it is read.

    Raises ExpertError if it is no LoRA adapter, is damaged, or holds more than low-rank updates of
    linear layers. Parts named in `lossy` are left out instead: the expert is then not the adapter
    that was trained.
    """
    _check_lossy(lossy)
    files = find_adapter(name, str(source), revision=revision)
    if check is not None:
        check(files.config)
        check(files.weights)
    settings = read_adapter_config(name, files.config)
    tensors = read_tensors(name, files.weights)
    if not tensors:
        raise ExpertError(f"expert '{name}': {files.weights} holds no tensors")
    parts = {key: _part(key, settings) for key in tensors}
    _refuse(name, settings, parts, lossy)
    layers = _layers(name, [key for key, part in parts.items() if part == "update"])
    check_patterns(name, patterns_of(settings), layers)
    start = str(settings.init_lora_weights).lower()
    # of an adapted embedding, PEFT saves the base's own matrix too, as that of its `base_layer`
    whole = {
        key.removeprefix(PREFIX).replace(".base_layer.", "."): tensors[key]
        for key, part in parts.items()
        if part == "vocabulary"
    }
    return Expert(
        name=name,
        source=files.source,
        revision=files.revision,
        config_file=files.config,
        weights_file=files.weights,
        settings=settings,
        updates={layer: _update(name, layer, tensors, settings) for layer in layers},
        start=start if start in EXACT_STARTS else None,
        whole=whole,
        lossy=tuple(part for part in LOSSY if part in lossy),
    )


def refuse_part(name: str, part: str, keys: Sequence[str], *, why: str = "") -> ExpertError:
    """Return the error for a part of an expert that may be left out on request only."""
    shown = ", ".join(f"'{key}'" for key in keys[:2])
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return ExpertError(
        f"expert '{name}' holds {LOSSY[part]}, which cannot be mixed exactly: {shown}{more}"
        f"{why}; to leave them out and lose what they add: lossy=['{part}']"
    )


def _check_lossy(lossy: Sequence[str]) -> None:
    for part in lossy:
        if part not in LOSSY:
            raise ExpertError(
                f"lossy: there is no part '{part}'{did_you_mean(part, LOSSY)}; it can name "
                f"{list(LOSSY)}"
            )


def _part(key: str, settings: LoraConfig) -> str:
    """Return which part of an adapter a tensor belongs to: an `update`, one of `LOSSY`, or
    `unknown`.
    """
    layer = key.removeprefix(PREFIX)
    saved = settings.modules_to_save or ()
    if any(re.search(rf"(^|\.){re.escape(module)}\.", layer) for module in saved):
        return "modules_to_save"
    if not key.startswith(PREFIX):
        return "unknown"
    if key.endswith((DOWN, UP)):
        return "update"
    for part, marks in _MARKS.items():
        if any(mark in key for mark in marks):
            return part
    # whether it is one, its base tells: see `loramix.mixture.fitting`
    return "vocabulary" if key.endswith(".weight") and "lora_" not in key else "unknown"


def _refuse(
    name: str, settings: LoraConfig, parts: Mapping[str, str], lossy: Sequence[str]
) -> None:
    """Refuse what a sum of low-rank updates of linear layers cannot express, unless it may be left
    out.
    """
    keys: dict[str, list[str]] = {}
    for key, part in parts.items():
        keys.setdefault(part, []).append(key)
    if "unknown" in keys:
        unknown = keys["unknown"]
        raise ExpertError(
            f"expert '{name}' holds '{unknown[0]}' ({len(unknown)} such tensors), which is no "
            f"low-rank update of a linear layer: those are named '{PREFIX}LAYER{DOWN}' and "
            f"'…{UP}'"
        )
    if settings.use_dora:  # without its magnitudes, PEFT starts with those of the base
        keys.setdefault("dora", ["use_dora"])
    if settings.lora_bias:
        keys.setdefault("bias", ["lora_bias"])
    for part in LOSSY:
        if part in keys and part not in ("vocabulary", *lossy):
            raise refuse_part(name, part, keys[part])


def _layers(name: str, keys: Sequence[str]) -> list[str]:
    """Return the layers of the tensors; raises ExpertError for one matrix without the other."""
    downs = [key.removesuffix(DOWN) for key in keys if key.endswith(DOWN)]
    ups = [key.removesuffix(UP) for key in keys if key.endswith(UP)]
    if not keys:
        raise ExpertError(f"expert '{name}' holds no low-rank update of a linear layer")
    for one, other, has, lacks in ((downs, ups, DOWN, UP), (ups, downs, UP, DOWN)):
        alone = sorted(set(one) - set(other))
        if alone:
            raise ExpertError(
                f"expert '{name}' is damaged: it holds '{alone[0]}{has}' without "
                f"'{alone[0]}{lacks}' ({len(alone)} such layers); save it again"
            )
    return [layer.removeprefix(PREFIX) for layer in downs]


def _update(name: str, layer: str, tensors: Mapping[str, Tensor], settings: LoraConfig) -> LowRank:
    """Return the update of one layer; raises ExpertError if its matrices are damaged."""
    down_key, up_key = f"{PREFIX}{layer}{DOWN}", f"{PREFIX}{layer}{UP}"
    down, up = tensors[down_key], tensors[up_key]
    for key, tensor in ((down_key, down), (up_key, up)):
        problem = _damage(tensor)
        if problem:
            raise ExpertError(
                f"expert '{name}' is damaged: '{key}' of shape {list(tensor.shape)} {problem}"
            )
    rank, wanted = down.shape[0], rank_of(settings, layer)
    if up.shape[1] != rank:
        raise ExpertError(
            f"expert '{name}' is damaged: the ranks of '{down_key}' {list(down.shape)} and "
            f"'{up_key}' {list(up.shape)} differ: {rank} and {up.shape[1]}"
        )
    if rank != wanted and not settings.target_parameters:
        raise ExpertError(
            f"expert '{name}' is damaged: '{down_key}' of shape {list(down.shape)} has rank "
            f"{rank}, and its adapter_config.json says {wanted} (r, rank_pattern)"
        )
    return LowRank(down, up, scale_of(settings, layer, rank))


def _damage(tensor: Tensor) -> str | None:
    """Return what is wrong with a matrix, or None."""
    if tensor.numel() == 0:
        return (
            "is empty, as DeepSpeed ZeRO-3 and FSDP leave what was not gathered before saving; "
            "gather the weights (stage3_gather_16bit_weights_on_model_save) and save again"
        )
    if tensor.dim() != 2:
        return "is no matrix, so it is no update of a linear layer"
    if tensor.dtype not in _FORMATS:
        return f"holds numbers of format {tensor.dtype}; save it as float32 or bfloat16"
    if not tensor.isfinite().all():
        kind = "NaN" if tensor.isnan().any() else "inf"
        return f"holds {kind}: the training diverged; take an earlier checkpoint"
    return None
