"""How a base becomes a mixture, and itself again: linear layers exchanged for mixed ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.gate import ContextGate
from loramix.mixture.groups import in_decoder, reading_together
from loramix.mixture.layer import MixtureLinear, Role, StackedA
from loramix.mixture.layout import BaseCalls
from loramix.mixture.linear import device_of, linear_shape, number_format_of
from loramix.storage.experts import Expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_plain(base: nn.Module) -> None:
    """Raise MixtureError if `base` is already part of a mixture, or carries PEFT's adapters."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if next(mixture_layers(base), None) is not None:
        raise MixtureError(
            "this base is already part of a mixture, which has changed it in place (a notebook "
            "cell that ran twice?); load the base again, or pass its name, which loads it anew"
        )
    if isinstance(base, PeftModel):
        raise MixtureError(
            "this base is a PeftModel, whose own adapter would be added to everything; pass "
            "base.unload(), which takes the adapter out, or name the adapter as an expert"
        )
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise MixtureError(
            "this base carries an adapter of PEFT (base.load_adapter, or inject_adapter_in_model), "
            "which would be added to everything; load the base without it, and name the adapter as "
            "an expert"
        )


def new_gates(
    base: "PreTrainedModel", roles: Mapping[str, Role], config: GateConfig, experts: int
) -> dict[str, ContextGate]:
    """Return an untrained gate for every reader, by its name."""
    gates = {}
    for role in roles.values():
        if role.layer == role.reader:
            layer = base.get_submodule(role.layer)
            gate = ContextGate(_gate_width(base, role.layer, config), experts, config)
            gates[role.layer] = gate.to(device_of(layer))
    return gates


def wrap(
    base: "PreTrainedModel",
    roles: Mapping[str, Role],
    experts: Sequence[Expert],
    gates: Mapping[str, ContextGate],
    calls: BaseCalls | None,
) -> None:
    """Put a MixtureLinear in the place of every layer that an expert adapts.

    gates: by reader, as `new_gates` names them. calls: how the base calls its layers.
    """
    updates = {layer: [expert.updates.get(layer) for expert in experts] for layer in roles}
    kinds = {}
    for layer in roles:
        module = base.get_submodule(layer)
        kinds[layer] = (number_format_of(module, base.dtype), device_of(module))
    for together in reading_together(kinds, calls):
        dtype, device = kinds[together[0]]
        present = []
        for layer in together:
            present.append([update for update in updates[layer] if update is not None])
        stacked = StackedA(present, dtype=dtype, device=device)
        for index, layer in enumerate(together):
            role = roles[layer]
            mixed = MixtureLinear(
                base.get_submodule(layer),
                role,
                updates[layer],
                gates[role.reader],
                stacked=stacked,
                index=index,
            )
            _replace(base, layer, mixed)


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


def _gate_width(base: "PreTrainedModel", layer: str, config: GateConfig) -> int:
    """Return the width of a gate's context: the layer's input, or the encoder's output."""
    if config.context == "prompt" and in_decoder(base, layer):
        return int(base.config.hidden_size)
    shape = linear_shape(base.get_submodule(layer))
    assert shape is not None, "`fitted` lets linear layers pass only"
    return shape[0]


def _replace(base: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(base.get_submodule(parent), attribute, module)
