"""Experts: LoRA adapters read from PEFT's files, refused by name where they cannot be mixed exactly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn

from loramix.errors import ExpertError, did_you_mean
from loramix.layer import LowRank

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Expert:
    """One adapter: its update of every layer that it adapts, by layer name, and the folder that it came from."""

    name: str
    source: str
    folder: Path
    updates: Mapping[str, LowRank]


def load_expert(name: str, source: str | Path) -> Expert:
    """Read a PEFT LoRA adapter from a folder or a Hub id.

    Raises ExpertError if it is no LoRA adapter or holds more than low-rank updates of linear layers.
    """
    folder = _folder(name, str(source))
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ExpertError(f"expert '{name}' is a {config.peft_type} adapter; only LoRA adapters can be mixed")
    _refuse_extras(name, config)
    tensors = load_file(folder / _WEIGHTS)
    _refuse_unknown(name, tensors)
    layers = [key.removeprefix(_PREFIX).removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)]
    updates = {layer: _update(layer, tensors, config) for layer in layers}
    return Expert(name, str(source), folder, updates)


def check_fits(expert: Expert, base: nn.Module) -> None:
    """Raise ExpertError if the expert adapts a layer that `base` lacks, or one of another shape."""
    layers = dict(base.named_modules())
    for layer, update in expert.updates.items():
        if layer not in layers:
            raise ExpertError(
                f"expert '{expert.name}' adapts '{layer}', which the base model does not have"
                f"{did_you_mean(layer, layers)}; it was trained on another base"
            )
        found = linear_shape(layers[layer])
        wanted = (update.down_RD.shape[1], update.up_OR.shape[0])
        if found != wanted:
            raise ExpertError(
                f"expert '{expert.name}' adapts '{layer}' as {wanted[0]} → {wanted[1]}, "
                f"but the base model's layer is {found and f'{found[0]} → {found[1]}'}; it was trained on another base"
            )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (input width, output width) of a linear layer, GPT-2's Conv1D included; None for any other module."""
    for wide, out in (("in_features", "out_features"), ("nx", "nf")):
        shape = getattr(module, wide, None), getattr(module, out, None)
        if isinstance(shape[0], int) and isinstance(shape[1], int):
            return shape[0], shape[1]
    return None


def _folder(name: str, source: str) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, allow_patterns=["adapter_*"]))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ExpertError(
                f"expert '{name}': '{source}' is neither a folder nor a reachable Hub id ({error})"
            ) from error
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise ExpertError(
                f"expert '{name}': {folder} holds no {file}; an expert is a PEFT adapter folder with both"
            )
    return folder


def _refuse_extras(name: str, config: LoraConfig) -> None:
    """Refuse what a sum of low-rank updates cannot express."""
    extras = {
        "DoRA (use_dora)": config.use_dora,
        f"bias training (bias='{config.bias}')": config.bias != "none",
        "LoRA bias (lora_bias)": config.lora_bias,
        f"fully trained modules (modules_to_save={config.modules_to_save})": bool(config.modules_to_save),
        "repeated layers (layer_replication)": bool(config.layer_replication),
        "trained token rows (trainable_token_indices)": bool(config.trainable_token_indices),
    }
    found = [label for label, used in extras.items() if used]
    if found:
        raise ExpertError(f"expert '{name}' uses {', '.join(found)}, which cannot be mixed exactly")


def _refuse_unknown(name: str, tensors: Mapping[str, Tensor]) -> None:
    odd = [key for key in tensors if not key.endswith((_DOWN, _UP))]
    if odd:
        raise ExpertError(
            f"expert '{name}' holds '{odd[0]}' ({len(odd)} such tensors), which is no low-rank update of a linear layer"
        )
    if not tensors:
        raise ExpertError(f"expert '{name}' holds no low-rank update at all")


def _update(layer: str, tensors: Mapping[str, Tensor], config: LoraConfig) -> LowRank:
    down_RD, up_OR = tensors[f"{_PREFIX}{layer}{_DOWN}"], tensors[f"{_PREFIX}{layer}{_UP}"]
    rank = down_RD.shape[0]
    alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), layer), config.lora_alpha)
    return LowRank(down_RD, up_OR, alpha / (math.sqrt(rank) if config.use_rslora else rank))
