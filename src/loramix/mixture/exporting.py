"""A mixture at fixed weights, for other engines: as a PEFT adapter, or as a whole model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.linear import is_transposed
from loramix.mixture.merging import write_merged
from loramix.mixture.weights import row_of
from loramix.storage.export import combined, short_names, write_adapter

if TYPE_CHECKING:
    from loramix.mixture.model import MixtureModel


def export(
    mixture: "MixtureModel",
    path: Path,
    *,
    weights: Mapping[str, float] | None,
    prompt: str | Mapping[str, Tensor] | None,
    merged: bool,
) -> None:
    """Write the mixture at the weights given by hand, or at those of a prompt; see
    `MixtureModel.export`.
    """
    if (weights is None) == (prompt is None):
        raise MixtureError("export needs either weights={expert: weight} or prompt='…'")
    if isinstance(prompt, str):
        prompt = mixture.text_inputs(prompt)
    if prompt is not None:
        chosen = _prompt_weights(mixture, prompt)
    else:
        chosen = dict.fromkeys(mixture.layers, row_of(weights or {}, mixture.expert_names))
    updates = combined(mixture.experts, chosen, mixture.gate_config.mixing)
    layers = {name: layer.base for name, layer in mixture.layers.items()}
    if merged:
        write_merged(mixture.base, layers, updates, path)
        return
    write_adapter(
        updates,
        path,
        targets=short_names(layers, [name for name, _ in mixture.base.named_modules()]),
        fan_in_fan_out=any(is_transposed(layer) for layer in layers.values()),
        base_name=mixture.base_name,
        revision=mixture.revision,
        task_type="SEQ_2_SEQ_LM" if mixture.config.is_encoder_decoder else "CAUSAL_LM",
    )


def _prompt_weights(
    mixture: "MixtureModel", inputs: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, " E"]]:
    """Return the weights of every layer for a prompt; for several rows, their mean.

    Raises MixtureError unless the gates decide once for each prompt: other weights cannot be one
    adapter.
    """
    context = mixture.gate_config.context
    if context != "prompt":
        raise MixtureError(
            f"the weights of a '{context}' gate depend on more than the prompt, so no single "
            "adapter has them; export fixed weights instead"
        )
    return {name: weights_BE.mean(0) for name, weights_BE in mixture.weights(**inputs).items()}
