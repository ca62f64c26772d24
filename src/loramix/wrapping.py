"""Which layers of a base become mixtures, and which of them share a gate."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from loramix.experts import Expert, linear_shape
from loramix.gate import ContextGate, GateConfig, Scope
from loramix.layer import MixtureLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Place(NamedTuple):
    """An adapted layer: its name, what shares its gate, and the first layer of that group, whose input it reads."""

    layer: str
    group: str
    reader: str


def places(base: "PreTrainedModel", layers: Collection[str], scope: Scope) -> list[Place]:
    """Return the place of every adapted layer, in model order."""
    readers: dict[str, str] = {}
    found = []
    for name, _ in base.named_modules():
        if name in layers:
            group = _group(base, name, scope)
            found.append(Place(name, group, readers.setdefault(group, name)))
    return found


def wrap(
    base: "PreTrainedModel", experts: Sequence[Expert], config: GateConfig, gates: Mapping[str, ContextGate]
) -> None:
    """Put a MixtureLinear in the place of every layer that an expert adapts; readers not in `gates` get a new gate."""
    known = dict(gates)
    for place in places(base, {layer for expert in experts for layer in expert.updates}, config.scope):
        module = base.get_submodule(place.layer)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        if place.layer == place.reader and place.reader not in known:
            gate = ContextGate(_gate_width(base, place.layer, config), len(experts), config)
            known[place.reader] = gate.to(weight.device)
        layer = MixtureLinear(
            module,
            place.layer,
            [expert.updates.get(place.layer) for expert in experts],
            known[place.reader],
            group=place.group,
            reads=place.layer == place.reader,
            dtype=weight.dtype if weight.is_floating_point() else torch.get_default_dtype(),
            device=weight.device,
        )
        _replace(base, place.layer, layer)


def unwrap(base: "PreTrainedModel") -> None:
    """Put every layer's own module back in its place."""
    for layer in list(mixture_layers(base)):
        _replace(base, layer.name, layer.base)


def mixture_layers(base: nn.Module) -> Iterator[MixtureLinear]:
    """Yield the adapted layers in model order."""
    return (module for module in base.modules() if isinstance(module, MixtureLinear))


def in_decoder(base: "PreTrainedModel", layer: str) -> bool:
    """Return whether the layer lies beside an encoder."""
    return bool(base.config.is_encoder_decoder) and not layer.startswith(_encoder_prefix(base))


def _group(base: "PreTrainedModel", layer: str, scope: Scope) -> str:
    """Return the name of what shares a gate with `layer`: itself, its block (`…layers.0`), or its side of the model."""
    if scope == "layer":
        return layer
    if scope == "model":
        return "model" if not base.config.is_encoder_decoder else "decoder" if in_decoder(base, layer) else "encoder"
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else layer


def _gate_width(base: "PreTrainedModel", layer: str, config: GateConfig) -> int:
    """Return the width of what a layer's gate reads: its input, or the encoder's output in a decoder."""
    shape = linear_shape(base.get_submodule(layer))
    assert shape is not None, "check_fits lets linear layers pass only"
    return int(base.config.hidden_size) if config.context == "prompt" and in_decoder(base, layer) else shape[0]


def _encoder_prefix(base: "PreTrainedModel") -> str:
    encoder = base.get_encoder()
    name: str = next(name for name, module in base.named_modules() if module is encoder)
    return name + "."


def _replace(base: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(base.get_submodule(parent), attribute, module)
