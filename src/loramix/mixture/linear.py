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
    """Return where a linear layer computes.

    Quantised layers need not have a `weight`: any parameter, buffer or tensor attribute tells. What
    accelerate has offloaded to memory or disk lies on the meta device in between, and comes to the
    device that its hook names.
    """
    for tensor in (*module.parameters(), *module.buffers(), *vars(module).values()):
        if isinstance(tensor, Tensor):
            return _hooked(module) if tensor.is_meta else tensor.device
    return torch.device("cpu")


def input_device(base: nn.Module) -> torch.device:
    """Return where a base takes its inputs: where its first parameter lies, or is brought."""
    first = next(base.parameters(), None)
    if first is None or not first.is_meta:
        return torch.device("cpu") if first is None else first.device
    return _hooked(base)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate brings a layer's weights for each call, and takes them away."""
    hook = getattr(module, "_hf_hook", None)
    return bool(getattr(hook, "offload", False))


def _hooked(module: nn.Module) -> torch.device:
    """Return the device that accelerate's hook brings a module to; meta if it has none."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return torch.device("meta")
    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)


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
