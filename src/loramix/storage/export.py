"""A mixture at fixed weights is one LoRA: written as an ordinary PEFT adapter, or merged into its
base.

Output mixing at weights g adds Σ_e g_e s_e B_e A_e x, which is one update with the experts' A
stacked and their g_e s_e B_e side by side, of rank Σ_e rank_e. Parameter mixing adds (Σ_e g_e s_e
B_e)(Σ_e g_e A_e) x, of the experts' common rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.linear import is_transposed
from loramix.mixture.model import MixtureModel
from loramix.storage.experts import LowRank
from loramix.storage.files import atomic_folder, check_replaceable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LayerWeights = Mapping[str, Float[Tensor, " E"]]


def prompt_weights(
    mixture: MixtureModel, inputs: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, " E"]]:
    """Return every layer's weights for a prompt; for several rows, their mean.

    Raises MixtureError unless the gates decide once for each prompt: other weights cannot be one
    adapter.
    """
    context = mixture.gate_config.context
    if context != "prompt":
        raise MixtureError(
            f"the weights of a '{context}' gate depend on more than the prompt, so no single "
            "adapter has them; "
            "export fixed weights instead"
        )
    return {name: weights_BE.mean(0) for name, weights_BE in mixture.weights(**inputs).items()}


def write_adapter(mixture: MixtureModel, weights: LayerWeights, path: Path) -> None:
    """Write the mixture at these weights to folder `path` as a PEFT adapter that needs no loramix.

    Layers of smaller rank are padded with zeros to the largest, as some servers know one rank for
    all layers only.
    """
    updates = combined(mixture, weights)
    rank = max(update.down_RD.shape[0] for update in updates.values())
    tensors = {}
    for layer, update in updates.items():
        missing = rank - update.down_RD.shape[0]
        tensors[f"base_model.model.{layer}.lora_A.weight"] = nn.functional.pad(
            update.down_RD, (0, 0, 0, missing)
        )
        tensors[f"base_model.model.{layer}.lora_B.weight"] = nn.functional.pad(
            update.up_OR, (0, missing)
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_targets(mixture),
        fan_in_fan_out=any(is_transposed(layer.base) for layer in mixture.layers.values()),
        base_model_name_or_path=mixture.base_name,
        revision=mixture.revision,
        task_type="SEQ_2_SEQ_LM" if mixture.config.is_encoder_decoder else "CAUSAL_LM",
        inference_mode=True,
    )
    check_replaceable(path, "adapter_config.json")
    with atomic_folder(path) as folder:
        config.save_pretrained(str(folder))
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
        )


def write_merged(
    mixture: MixtureModel,
    weights: LayerWeights,
    path: Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Write the base with the mixture at these weights merged into it: a model that needs neither
    loramix nor PEFT.
    """
    check_replaceable(path, "config.json")
    merged = _merged(mixture, combined(mixture, weights))
    with atomic_folder(path) as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def combined(mixture: MixtureModel, weights: LayerWeights) -> dict[str, LowRank]:
    """Return the one update (scale 1, float32) of every layer that equals its experts at these
    weights.
    """
    return {
        name: _combined(
            [expert.updates.get(name) for expert in mixture.experts], weights[name].float(), mixture
        )
        for name in mixture.layers
    }


def _combined(
    updates: Sequence[LowRank | None], weights_E: Float[Tensor, " E"], mixture: MixtureModel
) -> LowRank:
    present = [
        (float(g), update)
        for g, update in zip(weights_E, updates, strict=True)
        if update is not None
    ]
    ups = [update.up_OR.float() * update.scale * g for g, update in present]
    if mixture.gate_config.mixing == "output":
        return LowRank(
            torch.cat([update.down_RD.float() for _, update in present]), torch.cat(ups, dim=1), 1.0
        )
    downs = [update.down_RD.float() * g for g, update in present]
    return LowRank(torch.stack(downs).sum(0), torch.stack(ups).sum(0), 1.0)


def _targets(mixture: MixtureModel) -> list[str]:
    """Return the layers' last names if they mean exactly these layers, as servers prefer; else
    their full names.
    """
    short = sorted({name.rpartition(".")[2] for name in mixture.layers})
    inner = tuple(f"{name}." for name in mixture.layers)
    meant = [
        name
        for name, _ in mixture.base.named_modules()
        if name.rpartition(".")[2] in short and not name.startswith(inner)
    ]
    return short if meant == list(mixture.layers) else list(mixture.layers)


def _merged(mixture: MixtureModel, updates: Mapping[str, LowRank]) -> "PreTrainedModel":
    """Return a copy of the base, whose adapted layers have new weights and all others share
    theirs.
    """
    layers = mixture.layers
    inner = tuple(f"{name}." for name in layers)
    state = {
        key: value for key, value in mixture.base.state_dict().items() if not key.startswith(inner)
    }
    for name, layer in layers.items():
        if not layer.weight.is_floating_point() or type(layer.weight.data) is not Tensor:
            raise MixtureError(
                f"layer '{name}' is quantised, so nothing can be merged into it; export an adapter"
            )
        state |= {f"{name}.{key}": value for key, value in layer.base.state_dict().items()}
        update = updates[name].up_OR @ updates[name].down_RD
        delta = (update.T if is_transposed(layer.base) else update).to(layer.weight.device)
        state[f"{name}.weight"] = (layer.weight.float() + delta).to(layer.weight.dtype)
    with torch.device("meta"):
        merged = type(mixture.base)(mixture.config)
    merged.load_state_dict(state, assign=True)
    merged.tie_weights()
    merged.generation_config = mixture.base.generation_config
    return merged
