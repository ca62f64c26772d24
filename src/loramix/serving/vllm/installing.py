"""A saved mixture put into vLLM's model of its base."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loramix.errors import MixtureError
from loramix.mixture.fitting import fitted
from loramix.mixture.gate import ContextGate
from loramix.mixture.groups import roles
from loramix.mixture.layer import Role
from loramix.mixture.linear import is_transposed, linear_shape
from loramix.mixture.wrapping import adapted_layers
from loramix.serving.vllm.deciding import Decider, Held, Reader
from loramix.serving.vllm.layer import MixedLinear, Part
from loramix.serving.vllm.placing import Place, WeightCheck, places
from loramix.storage.experts import Expert, LowRank
from loramix.storage.format import Parts, load

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from vllm.config import VllmConfig


class Installation:
    """The mixture of one folder, on its way into one model of vLLM.

    Everything that can be refused before the weights are read is refused on creation.

    last: the reader that comes last in the base, where gates decide together; known when finished.
    """

    last: Reader | None = None

    def __init__(self, model: nn.Module, folder: Path, config: "VllmConfig") -> None:
        self._model, self._config = model, config
        self.parts = load(folder)
        base = _skeleton(config.model_config.hf_config)
        self._experts = [_fitted(expert, base) for expert in self.parts.experts]
        layers = adapted_layers(self._experts)
        shapes = {name: linear_shape(base.get_submodule(name)) for name in layers}
        self._places = places(model, {name: at for name, at in shapes.items() if at is not None})
        self._roles = _read_where_trained(
            roles(base, layers, self.parts.gate.scope, None), self.parts
        )
        self._last = [role.layer for role in self._roles.values() if role.layer == role.reader][-1]
        transposed = [name for name in layers if is_transposed(base.get_submodule(name))]
        self._check = WeightCheck(self._places, transposed, f"{base.base_model_prefix}.")

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the base's weights on their way into vLLM's model."""
        return self._check.watch(weights)

    def finish(self) -> Held:
        """Put mixed layers in the place of vLLM's own; returns what holds weights by hand."""
        self._check.check(self._model)
        experts = len(self._experts)
        device = next(self._model.parameters()).device
        tokens = self._config.scheduler_config.max_num_batched_tokens
        held = Held(tokens, experts, device)
        for name in dict.fromkeys(place.module for place in self._places.values()):
            inside = [place for place in self._places.values() if place.module == name]
            inside.sort(key=lambda place: place.index)
            readers = [self._reader(place, device) for place in inside]
            gate = self.parts.gate
            decider = None
            if gate.context != "token" or gate.scope != "layer" or gate.carry:
                decider = Decider(f"{name}.loramix", readers, gate, experts)
                self._config.compilation_config.static_forward_context[decider.name] = decider
            parent, _, attribute = name.rpartition(".")
            owner = self._model.get_submodule(parent)
            gates = [reader.gate for reader in readers if reader.gate is not None]
            parts = [self._part(place) for place in inside]
            base = getattr(owner, attribute)
            setattr(owner, attribute, MixedLinear(base, parts, gates, decider=decider, held=held))
        return held

    def _reader(self, place: Place, device: torch.device) -> Reader:
        role = self._roles[place.layer]
        gate = None
        if role.layer == role.reader:
            gate = _gate(role.layer, self.parts, len(self._experts)).to(device)
        reader = Reader(role.group, gate, role.block, role.layer == self._last)
        if reader.last and self.parts.gate.first_pass:
            self.last = reader
        return reader

    def _part(self, place: Place) -> Part:
        updates = [expert.updates.get(place.layer) for expert in self._experts]
        present = [(e, update) for e, update in enumerate(updates) if update is not None]
        ranks = [len(update.down_RD) for _, update in present]
        separate = self.parts.gate.mixing == "parameter"
        if separate and len(set(ranks)) > 1:
            raise MixtureError(
                "parameter mixing needs equal ranks, but the experts of layer "
                f"'{place.layer}' have ranks {ranks}; use mixing='output'"
            )
        number = torch.tensor([expert for expert, _ in present])
        return Part(
            down_RD=torch.cat([update.down_RD for _, update in present]),
            up_OR=torch.cat([_scaled(update)[place.rows] for _, update in present], dim=1),
            expert_of_rank=number.repeat_interleave(torch.tensor(ranks)),
            start=place.start,
            rank=ranks[0] if separate else None,
        )


def _skeleton(config: "PreTrainedConfig") -> "PreTrainedModel":
    """Return the base as transformers builds it, without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _fitted(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Return an expert as it acts on the base; raises MixtureError where that takes its weights."""
    if expert.start is not None or (expert.whole and "vocabulary" not in expert.lossy):
        what = f"{expert.start} starts from" if expert.start else "its saved vocabulary is that of"
        raise MixtureError(
            f"whether expert '{expert.name}' fits takes the base's weights ({what} them), which "
            "vLLM spreads over processes: convert the adapter (PEFT: path_initial_model_for_weight_"
            "conversion; save_embedding_layers=False), or use loramix serve without --engine vllm"
        )
    return fitted(expert, base)


def _read_where_trained(planned: Mapping[str, Role], parts: Parts) -> Mapping[str, Role]:
    """Return the roles, with each group read at the layer whose gate was saved."""
    saved = {key.rpartition(".")[0].rpartition(".")[0] or key for key in parts.gate_state}
    readers = {role.group: role.layer for role in planned.values() if role.layer in saved}
    lacking = {role.group for role in planned.values()} - readers.keys()
    if lacking:
        raise MixtureError(f"the mixture has no gate of '{min(lacking)}'; save it again")
    return {
        name: Role(name, role.group, readers[role.group], role.form, role.block)
        for name, role in planned.items()
    }


def _gate(reader: str, parts: Parts, experts: int) -> ContextGate:
    """Return the gate that reads at a layer, in float32, whatever vLLM's number format is."""
    start = f"{reader}."
    state = {
        key.removeprefix(start): tensor.float()
        for key, tensor in parts.gate_state.items()
        if key.startswith(start)
    }
    gate = ContextGate(state["lift.weight"].shape[1], experts, parts.gate).float()
    gate.load_state_dict(state)
    return gate.requires_grad_(False).eval()


def _scaled(update: LowRank) -> Tensor:
    return update.up_OR.float() * update.scale
