"""Facts about linear layers of any make: `nn.Linear`, GPT-2's `Conv1D`, quantised ones."""

import torch
from torch import Tensor, nn


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (input width, output width) of a linear layer; None for any other module."""
    # `infeatures` is what quantisers of GPTQ call it.
    for wide, out in (("in_features", "out_features"), ("infeatures", "outfeatures"), ("nx", "nf")):
        shape = getattr(module, wide, None), getattr(module, out, None)
        if isinstance(shape[0], int) and isinstance(shape[1], int):
            return shape[0], shape[1]
    return None


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer keeps its weight as (input, output), as GPT-2's Conv1D does."""
    return isinstance(getattr(module, "nf", None), int)


def device_of(module: nn.Module) -> torch.device:
    """Return where a linear layer lies.

    Quantised layers need not have a `weight`: any parameter, buffer or tensor attribute tells.
    """
    for tensor in (*module.parameters(), *module.buffers(), *vars(module).values()):
        if isinstance(tensor, Tensor):
            return tensor.device
    return torch.device("cpu")


def number_format_of(module: nn.Module, base_dtype: torch.dtype) -> torch.dtype:
    """Return the number format in which a layer's experts compute.

    That is the format of its weight or, where that is quantised or has another name, of the base.
    """
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1
    if plain:
        assert isinstance(weight, Tensor)
        return weight.dtype
    return base_dtype
