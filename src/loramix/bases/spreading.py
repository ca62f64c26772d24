"""Bases larger than one device: spread over several, offloaded to memory or disk, or quantised."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeAlias

from loramix.errors import BaseModelError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
# One of these ways, or the device of each part of the model by name: the number of an accelerator,
# `cpu` or `disk`.
DeviceMap: TypeAlias = str | dict[str, int | str]
# Of the weights of linear layers, by bitsandbytes: LLM.int8() (arXiv:2208.07339), and NF4 as in
# QLoRA (arXiv:2305.14314).
Quantisation: TypeAlias = Literal["8bit", "4bit"]
_PACKAGE = "bitsandbytes"


def loading_settings(
    dtype: str, device_map: DeviceMap | None, quantisation: Quantisation | None
) -> dict[str, object]:
    """Return the arguments of `from_pretrained` for a base that is spread or quantised.

    dtype: the number format in which quantised layers compute.
    """
    how: dict[str, object] = {} if device_map is None else {"device_map": device_map}
    if quantisation is not None:
        import torch
        from transformers import BitsAndBytesConfig

        how["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantisation == "8bit",
            load_in_4bit=quantisation == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype, torch.float32),
        )
    return how


def how_problems(device_map: DeviceMap | None, quantisation: Quantisation | None) -> Iterator[str]:
    """Yield why no base can be spread or quantised so on this machine."""
    if quantisation is not None and find_spec(_PACKAGE) is None:
        yield (
            f"quantisation: '{quantisation}' is done by {_PACKAGE}, which is not installed; get it "
            f"with: pip install {_PACKAGE}"
        )
    if isinstance(device_map, str) and device_map not in WAYS:
        yield (
            f"device_map: there is no way '{device_map}'{did_you_mean(device_map, WAYS)}; it is "
            f"{', '.join(WAYS)}, or the device of each part by name"
        )
    if not isinstance(device_map, dict):
        return
    import torch

    known, there = "cpu, disk or the number of a GPU", torch.cuda.device_count()
    for part, device in device_map.items():
        if isinstance(device, int) and not 0 <= device < there:
            yield f"device_map: '{part}' is to lie on GPU {device}, and this machine has {there}"
        if isinstance(device, str) and device not in ("cpu", "disk"):
            yield f"device_map: '{part}' is to lie on '{device}'; there are {known}"


def refuse_offloaded(model: "nn.Module", work: str) -> None:
    """Raise BaseModelError for some work that needs all weights of a base on devices.

    work: in words.
    """
    offloaded = sum(parameter.numel() for parameter in model.parameters() if parameter.is_meta)
    if offloaded:
        raise BaseModelError(
            f"{work} needs all weights on devices, and {offloaded:,} of this base are offloaded to "
            "memory or disk (base.device_map); use more or larger devices, base.quantisation, or "
            "given adapters (experts), whose mixture can be trained and asked on such a base"
        )


def refuse_untrainable(model: "nn.Module") -> None:
    """Raise BaseModelError if gradients through a quantised base would be wrong here.

    On a processor, 4-bit layers of bitsandbytes repack their weights when they are first asked
    without gradients, as in a validation, and pass none on from then on.
    """
    for module in model.modules():
        four_bits = any(kind.__name__ == "Linear4bit" for kind in type(module).__mro__)
        if four_bits and next(module.parameters()).device.type == "cpu":
            raise BaseModelError(
                "4-bit layers of bitsandbytes that lie in memory pass no gradients on, so nothing "
                "can be trained through them; train on a GPU, or with base.quantisation=8bit"
            )
