"""The settings of a PEFT adapter, checked against an allow-list of those that mix exactly."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loramix.errors import ExpertError
from loramix.storage.hub import first_line
from loramix.storage.texts import read_json

ADAPTER_CONFIG = "adapter_config.json"

# How the adapter was trained and which layers it adapts; the tensors name the layers themselves.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",  # PEFT sets it by the kind of the layer
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",  # of training
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}

# Training settings written by ms-swift and by the first versions of PEFT.
_OF_TRAINERS = {"lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "merge_weights"}

# These change the update: loramix computes them as PEFT does, or refuses the tensors they add.
HANDLED = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}

REFUSED = {
    "alora_invocation_tokens": "acts only after its invocation tokens (activated LoRA)",
    "arrow_config": "routes its inputs between other adapters (Arrow)",
    "kasa_config": "truncates the weights of its base (KaSA)",
    "layer_replication": "repeats layers of its base",
    "megatron_config": "belongs to Megatron's parallel layers",
    "monteclora_config": "samples its matrices (MonteCLoRA)",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "use_qalora": "pools what it reads (QA-LoRA)",
    "velora_config": "was trained with a backward pass of its own (VeLoRA)",
}

# Ways to start that leave the base's weights as they are, so that the update is s B A.
PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
# Starts that can be computed again from the base's weights, and taken off: s (B A - B0 A0).
EXACT_STARTS = ("pissa", "olora")

_CONVERT = (
    "convert it where it was trained: model.save_pretrained(FOLDER, "
    "path_initial_model_for_weight_conversion=START), where START holds the adapter as it was "
    "before the first step"
)


_Rank = Annotated[int, Field(ge=1, le=2**20)]


class _Counted(BaseModel):
    """The types of the settings that the update is computed from, or that are asked about it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: _Rank = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    modules_to_save: list[str] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    target_parameters: list[str] | None = None
    base_model_name_or_path: str | None = None


def read_adapter_config(expert: str, file: Path) -> LoraConfig:
    """Read the settings of an expert; raise ExpertError unless it can be mixed exactly."""
    content = _read(expert, file)
    kind = content.get("peft_type", "LORA")
    if kind != "LORA":
        raise ExpertError(f"expert '{expert}' is a {kind} adapter; only LoRA adapters can be mixed")
    _check_settings(expert, content)
    _check_types(expert, file, content)
    start = str(content.get("init_lora_weights", True)).lower()
    if start not in PLAIN_STARTS + EXACT_STARTS:
        raise ExpertError(
            f"expert '{expert}' was trained with init_lora_weights='{start}'{_why(start)}; "
            f"{_CONVERT}"
        )
    known = {field.name for field in fields(LoraConfig)}
    try:
        with warnings.catch_warnings(action="ignore"):  # PEFT warns about training
            return LoraConfig(**{key: value for key, value in content.items() if key in known})
    except Exception as error:  # settings of any types go in
        raise ExpertError(f"expert '{expert}': PEFT refuses {file}: {first_line(error)}") from error


def settle(folder: Path, **changes: object) -> None:
    """Change settings of an adapter that PEFT has just written, and give those that it keeps as
    sets an order: their own differs from process to process, and so would the file's bytes.
    """
    file = folder / ADAPTER_CONFIG
    settings = {**json.loads(file.read_bytes()), **changes}
    for key in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(key), list):
            settings[key] = sorted(settings[key])
    file.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def rank_of(config: LoraConfig, layer: str) -> int:
    """Return the rank that the settings give a layer."""
    key = get_pattern_key(list(config.rank_pattern or {}), layer)
    return int((config.rank_pattern or {}).get(key, config.r))


def scale_of(config: LoraConfig, layer: str, rank: int) -> float:
    """Return the factor s of a layer's update s B A."""
    key = get_pattern_key(list(config.alpha_pattern or {}), layer)
    alpha = (config.alpha_pattern or {}).get(key, config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def patterns_of(config: LoraConfig) -> list[str]:
    """Return the texts of the settings that PEFT matches as patterns with the names of layers."""
    found = [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    for setting in (config.target_modules, config.exclude_modules, config.layers_pattern):
        if isinstance(setting, str):
            found.append(setting)
    if isinstance(config.layers_pattern, list):
        found += config.layers_pattern
    return found


def _read(expert: str, file: Path) -> dict[str, object]:
    try:
        content = read_json(file)
    except ValueError as error:
        raise ExpertError(f"expert '{expert}': {file} is no JSON: {first_line(error)}") from error
    except OSError as error:
        raise ExpertError(f"expert '{expert}': {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ExpertError(f"expert '{expert}': {file} holds no settings of an adapter")
    return content


def _check_types(expert: str, file: Path, settings: Mapping[str, object]) -> None:
    """Raise ExpertError for a setting that is counted with and has no such value."""
    try:
        _Counted.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ExpertError(
            f"expert '{expert}' is damaged: {file} has {key}={_short(first['input'])}, and "
            f"{first['msg'][0].lower()}{first['msg'][1:]}"
        ) from error


def _check_settings(expert: str, settings: Mapping[str, object]) -> None:
    """Raise ExpertError for the first active setting outside the allow-list."""
    for field, value in settings.items():
        if not value or field in HARMLESS | HANDLED | _OF_TRAINERS:
            continue
        if field in REFUSED:
            raise ExpertError(
                f"expert '{expert}' {REFUSED[field]}: {field}={_short(value)}, so no fixed sum "
                "of low-rank updates of linear layers is the same; serve it with PEFT, or train it "
                f"again without {field}"
            )
        raise ExpertError(
            f"expert '{expert}' sets {field}={_short(value)}, of which loramix does not know "
            f"whether it changes the adapter (made by PEFT {settings.get('peft_version', '?')}); "
            "pip install --upgrade loramix peft, or train it again without"
        )


def _why(start: str) -> str:
    if start.startswith("pissa_niter"):
        return ", which changed the base's weights by a random approximation"
    if start in ("corda", "loftq", "lora_ga"):
        return ", which changed the base's weights in a way that the adapter does not tell"
    return ", of which loramix does not know whether it changed the base's weights"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
