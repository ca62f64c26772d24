"""Which layers of a base become mixtures, and which of them share a gate."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from loramix.config import GateConfig, Scope
from loramix.errors import MixtureError
from loramix.mixture.gate import ContextGate
from loramix.mixture.layer import Downs, MixtureLinear
from loramix.mixture.linear import linear_shape
from loramix.storage.experts import Expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ_ONE_INPUT = (
    "q k v",
    "q_proj k_proj v_proj",
    "query key value",
    "gate_proj up_proj",
    "wi_0 wi_1",
)
_CROSS_ATTENTION = (
    "EncDecAttention",
    "encoder_attn",
    "crossattention",
    "cross_attn",
    "cross_attention",
)


class Place(NamedTuple):
    """An adapted layer: its name, what shares its gate, and the first layer of that group, whose
    input it reads.
    """

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


def check_readers(
    base: "PreTrainedModel", old: Collection[str], new: Collection[str], scope: Scope
) -> None:
    """Raise MixtureError if a shared gate would read another layer, once `new` layers are adapted
    instead of `old`.
    """
    readers = {place.group: place.reader for place in places(base, old, scope)}
    for place in places(base, new, scope):
        before = readers.get(place.group, place.reader)
        if before != place.reader:
            raise MixtureError(
                f"the gate of '{place.group}' was made to read at '{before}', the first adapted "
                "layer; with these "
                f"experts that would be '{place.reader}'. Build a new mixture, or one with "
                "scope='layer'"
            )


def new_gates(
    base: "PreTrainedModel", layers: Collection[str], config: GateConfig, experts: int
) -> dict[str, ContextGate]:
    """Return an untrained gate for every layer that one reads from."""
    gates = {}
    for place in places(base, layers, config.scope):
        if place.layer == place.reader:
            device = base.get_submodule(place.layer).weight.device
            gates[place.layer] = ContextGate(
                _gate_width(base, place.layer, config), experts, config
            ).to(device)
    return gates


def wrap(
    base: "PreTrainedModel",
    experts: Sequence[Expert],
    config: GateConfig,
    gates: Mapping[str, ContextGate],
) -> None:
    """Put a MixtureLinear in the place of every layer that an expert adapts; `gates` as `new_gates`
    names them.
    """
    found = {place.layer: place for place in places(base, adapted_layers(experts), config.scope)}
    updates = {layer: [expert.updates.get(layer) for expert in experts] for layer in found}
    for together in reading_together(base, list(found)):
        weight = base.get_submodule(together[0]).weight
        assert isinstance(weight, torch.Tensor)
        present = [
            [update for update in updates[layer] if update is not None] for layer in together
        ]
        dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        downs = Downs(present, dtype=dtype, device=weight.device)
        for place, layer in enumerate(together):
            where = found[layer]
            mixed = MixtureLinear(
                base.get_submodule(layer),
                layer,
                updates[layer],
                gates[where.reader],
                downs=downs,
                place=place,
                group=where.group,
                reads=layer == where.reader,
            )
            _replace(base, layer, mixed)


def reading_together(base: "PreTrainedModel", layers: Sequence[str]) -> list[list[str]]:
    """Return the layers in groups that can share a down-projection: those of one module that read
    one input, by name.

    They share its result only where they are really given the same tensor. In cross-attention,
    queries are not.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for layer in layers:
        (parent, _, name), weight = layer.rpartition("."), base.get_submodule(layer).weight
        assert isinstance(weight, torch.Tensor)
        kind = next((names for names in _READ_ONE_INPUT if name in names.split()), name)
        if parent.rpartition(".")[2] in _CROSS_ATTENTION and kind[0] == name[0] == "q":
            kind = name
        groups.setdefault((parent, kind, weight.dtype, weight.device), []).append(layer)
    return list(groups.values())


def unwrap(base: "PreTrainedModel") -> None:
    """Put every layer's own module back in its place."""
    for layer in list(mixture_layers(base)):
        _replace(base, layer.name, layer.base)


def adapted_layers(experts: Sequence[Expert]) -> set[str]:
    """Return the names of the layers that any of the experts adapts."""
    return {layer for expert in experts for layer in expert.updates}


def mixture_layers(base: nn.Module) -> Iterator[MixtureLinear]:
    """Yield the adapted layers in model order."""
    return (module for module in base.modules() if isinstance(module, MixtureLinear))


def in_decoder(base: "PreTrainedModel", layer: str) -> bool:
    """Return whether the layer lies beside an encoder."""
    return bool(base.config.is_encoder_decoder) and not layer.startswith(_encoder_prefix(base))


def _group(base: "PreTrainedModel", layer: str, scope: Scope) -> str:
    """Return the name of what shares a gate with `layer`: itself, its block (`…layers.0`), or its
    side of the model.
    """
    if scope == "layer":
        return layer
    if scope == "model":
        return (
            "model"
            if not base.config.is_encoder_decoder
            else "decoder"
            if in_decoder(base, layer)
            else "encoder"
        )
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else layer


def _gate_width(base: "PreTrainedModel", layer: str, config: GateConfig) -> int:
    """Return the width of what a layer's gate reads: its input, or the encoder's output in a
    decoder.
    """
    shape = linear_shape(base.get_submodule(layer))
    assert shape is not None, "fitting lets linear layers pass only"
    return (
        int(base.config.hidden_size)
        if config.context == "prompt" and in_decoder(base, layer)
        else shape[0]
    )


def _encoder_prefix(base: "PreTrainedModel") -> str:
    encoder = base.get_encoder()
    name: str = next(name for name, module in base.named_modules() if module is encoder)
    return name + "."


def _replace(base: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(base.get_submodule(parent), attribute, module)
