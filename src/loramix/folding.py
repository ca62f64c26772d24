"""Folding: for the length of one generation, the experts are part of the weights, and cost nothing per token.

It takes weights that hold for every row and every step: those of one prompt, or fixed ones. The layers then use copies
of their weights with the update added; the base's own are never written. Copies are made at the second token, by the
layers that are asked for one (not by an encoder, nor for the keys of cross-attention), and go when the answer is there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from loramix.call import here
from loramix.errors import MixtureError
from loramix.update import Folded, Gathered, is_transposed

if TYPE_CHECKING:
    from loramix.mixture import MixtureModel

WORTH = 16  # new tokens from which on folding pays, by `benchmarks/folding.py`


def folds(mixture: "MixtureModel", inputs: Mapping[str, object], prompt: object, wanted: bool | None) -> bool:
    """Return whether to fold in a generation with these inputs; None as `wanted`: if it can be done and pays.

    Raises MixtureError if folding is wanted and there are weights that differ between rows or tokens.
    """
    if wanted is False:
        return False
    obstacle = _obstacle(mixture, prompt)
    if wanted and obstacle:
        raise MixtureError(f"{obstacle}, so their updates cannot be folded into one weight; generate with fold=None")
    return not obstacle and bool(wanted or _most_new_tokens(mixture, inputs, prompt) >= WORTH)


def can_fold(base: nn.Module) -> bool:
    """Return whether a layer does nothing but multiply by a weight that can be added to.

    Quantised layers do not, nor do those with hooks or a replaced `forward`, as of models spread over devices.
    """
    hooked = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    return type(base) in (nn.Linear, Conv1D) and not hooked and base.weight.is_floating_point()  # type: ignore[operator]


def folded(base: nn.Module, update: Gathered) -> Folded:
    """Return a copy of the base's weight with the update of the first row added."""
    up_OR, down_RD = update.matrices()
    weight = base.weight
    assert isinstance(weight, Tensor)
    if is_transposed(base):
        return Folded(torch.addmm(weight, down_RD.T, up_OR.T).T)
    return Folded(torch.addmm(weight, up_OR, down_RD))


def _obstacle(mixture: "MixtureModel", prompt: object) -> str | None:
    if here.fixed is not None:
        return None if here.fixed.rows == 1 else f"there are fixed weights for {here.fixed.rows} rows"
    if mixture.gate_config.context != "prompt":
        return f"the weights of a '{mixture.gate_config.context}' gate change from token to token"
    if not isinstance(prompt, Tensor) or len(prompt) != 1:
        return "every prompt has weights of its own"
    return None


def _most_new_tokens(mixture: "MixtureModel", inputs: Mapping[str, object], prompt: object) -> int:
    """Return how many tokens this generation may make at most, as transformers finds it."""
    given = inputs.get("generation_config")
    config = given if isinstance(given, GenerationConfig) else mixture.base.generation_config
    new, whole = (inputs.get(name) or getattr(config, name, None) for name in ("max_new_tokens", "max_length"))
    if isinstance(new, int):
        return new
    counted = prompt.shape[1] if isinstance(prompt, Tensor) and not mixture.config.is_encoder_decoder else 0
    return whole - counted if isinstance(whole, int) else GenerationConfig().max_length or 20
