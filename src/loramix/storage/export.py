"""A mixture at fixed weights is one LoRA: written as an ordinary PEFT adapter.

Output mixing at weights g adds Σ_e g_e s_e B_e A_e x, which is one update with the experts' A
stacked and their g_e s_e B_e side by side, of rank Σ_e rank_e. Parameter mixing adds (Σ_e g_e s_e
B_e)(Σ_e g_e A_e) x, of the experts' common rank.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from loramix.config import Mixing
from loramix.storage.adapter_config import ADAPTER_CONFIG, settle
from loramix.storage.adapter_files import ADAPTER_WEIGHTS
from loramix.storage.experts import DOWN, PREFIX, UP, Expert, LowRank
from loramix.storage.files import atomic_folder, check_replaceable

LayerWeights = Mapping[str, Float[Tensor, " E"]]


def combined(
    experts: Sequence[Expert], weights: LayerWeights, mixing: Mixing
) -> dict[str, LowRank]:
    """Return the one update (scale 1, float32) of every layer that equals the experts at these
    weights.
    """
    return {
        layer: _combined([expert.updates.get(layer) for expert in experts], weights_E, mixing)
        for layer, weights_E in weights.items()
    }


def write_adapter(
    updates: Mapping[str, LowRank],
    path: Path,
    *,
    targets: Collection[str],
    fan_in_fan_out: bool,
    base_name: str,
    revision: str | None,
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"],
) -> None:
    """Write updates of scale 1 to folder `path` as a PEFT adapter that needs no loramix.

    Layers of smaller rank are padded with zeros to the largest, as some servers know one rank for
    all layers only.

    targets: the names by which PEFT is to find the layers.
    fan_in_fan_out: whether these layers keep their weights as (input, output).
    """
    rank = max(update.down_RD.shape[0] for update in updates.values())
    tensors = {}
    for layer, update in updates.items():
        missing = rank - update.down_RD.shape[0]
        down_RD = nn.functional.pad(update.down_RD, (0, 0, 0, missing))
        up_OR = nn.functional.pad(update.up_OR, (0, missing))
        tensors[f"{PREFIX}{layer}{DOWN}"] = down_RD.contiguous()
        tensors[f"{PREFIX}{layer}{UP}"] = up_OR.contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(targets),
        fan_in_fan_out=fan_in_fan_out,
        base_model_name_or_path=base_name,
        revision=revision,
        task_type=task_type,
        inference_mode=True,
    )
    check_replaceable(path, ADAPTER_CONFIG)
    with atomic_folder(path) as folder:
        config.save_pretrained(str(folder))
        settle(folder)
        save_file(tensors, folder / ADAPTER_WEIGHTS)


def short_names(layers: Collection[str], modules: Sequence[str]) -> list[str]:
    """Return the layers' last names if they mean exactly these layers of a model, as servers
    prefer; else their full names.

    modules: the names of all modules of the model, in its order, as are the layers.
    """
    short = sorted({name.rpartition(".")[2] for name in layers})
    inner = tuple(f"{name}." for name in layers)
    outside = [name for name in modules if not name.startswith(inner)]
    meant = [name for name in outside if name.rpartition(".")[2] in short]
    return short if meant == list(layers) else list(layers)


def _combined(
    updates: Sequence[LowRank | None], weights_E: Float[Tensor, " E"], mixing: Mixing
) -> LowRank:
    present = [
        (weight, update)
        for weight, update in zip(weights_E.tolist(), updates, strict=True)
        if update is not None
    ]
    ups = [update.up_OR.float() * update.scale * weight for weight, update in present]
    if mixing == "output":
        downs = [update.down_RD.float() for _, update in present]
        return LowRank(torch.cat(downs), torch.cat(ups, dim=1), 1.0)
    downs = [update.down_RD.float() * weight for weight, update in present]
    return LowRank(torch.stack(downs).sum(0), torch.stack(ups).sum(0), 1.0)
