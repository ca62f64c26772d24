"""Facts about linear layers of any make: `nn.Linear`, GPT-2's `Conv1D`, quantised ones."""

from torch import nn


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (input width, output width) of a linear layer, None for any other module."""
    for wide, out in (("in_features", "out_features"), ("nx", "nf")):
        shape = getattr(module, wide, None), getattr(module, out, None)
        if isinstance(shape[0], int) and isinstance(shape[1], int):
            return shape[0], shape[1]
    return None


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer keeps its weight as (input, output), as GPT-2's Conv1D does."""
    return isinstance(getattr(module, "nf", None), int)
