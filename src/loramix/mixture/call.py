"""One pass through one stack of layers: what its gates may read, and what they have decided.

The mixture opens a `Call` around each stack (the encoder, the decoder, or the whole of a
decoder-only model). A layer asks its call for the routing weights that hold for its input.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.batching import Pass
from loramix.mixture.context import read, spread
from loramix.mixture.folding import Folding
from loramix.mixture.gate import Evidence
from loramix.mixture.pooling import AttentionPooling
from loramix.mixture.state import current, in_call
from loramix.mixture.update import Update
from loramix.mixture.weights import FixedWeights, RoutingWeights

if TYPE_CHECKING:
    from loramix.mixture.layer import MixtureLinear, StackedA


class EncoderOutput(NamedTuple):
    """The encoder's output as a decoder reads it, its valid tokens, and their mean as one token."""

    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]
    mean_B1D: Float[Tensor, "B 1 D"]  # float32
    one_B1: Bool[Tensor, "B 1"]  # the mean is always a valid token


class _Context(NamedTuple):
    """What gates read of one input; layers that read the same input read it once."""

    hidden_BTD: Tensor
    mask_BT: Tensor
    state_BF: Tensor | None
    pooling: AttentionPooling | None
    found: tuple[Float[Tensor, "B _ D"], Float[Tensor, "B F"] | None]

    def is_of(self, *read: object) -> bool:
        """Return whether this was read from these very tensors, by the same pooling."""
        return all(own is other for own, other in zip(self, read, strict=False))


class _SharedProduct(NamedTuple):
    """The down-projected input of the layers that read it and have not fetched their part yet."""

    x_BTD: Tensor
    stacked: "StackedA"
    parts: dict[int, Tensor]


@dataclass
class Call:
    """One pass through one stack.

    shape: (rows, tokens) of the stack's own input.
    mask_BT: the tokens that a gate may read; None where no gate will: all is decided or fixed.
    segments_BT: the number of the sample that each token belongs to, where rows hold several.
    requests: those of a pass of continuous batching, which tell whose each token is.
    encoder: what a decoder with cross-attention reads.
    fixed: weights that override every gate.
    decided: gate group -> weights. Begins with those that came with a cache; the first layer of
        each further group adds its own.
    evidence: of the gates so far, where gates carry it on: of those that read the stack's tokens or
        its prompt, and of those that read the encoder's tokens.
    states: gate group -> sum and count with which a running mean goes on.
    first: in a first pass of the base alone, what gates read in it: contexts and masks, by reader.
    learning: whether what they read there has gradients.
    updates: layer -> update, where weights stay as they are for all further steps. None where they
        may change, or where gradients are wanted.
    folding: makes folded weights of those updates, where that is wanted.
    """

    stack: nn.Module
    shape: tuple[int, int]
    mask_BT: Bool[Tensor, "B T"] | None
    segments_BT: Int[Tensor, "B T"] | None = None
    requests: Pass | None = None
    encoder: EncoderOutput | None = None
    fixed: FixedWeights | None = None
    decided: dict[str, Float[Tensor, "B _ E"]] = field(default_factory=dict)
    states: dict[str, Float[Tensor, "B _"]] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    first: dict[str, tuple[Tensor, Tensor]] | None = None
    learning: bool = False
    updates: dict[str, Update] | None = None
    folding: Folding | None = None
    outer: "Call | None" = None
    _context: _Context | None = None
    _product: _SharedProduct | None = None

    def kept_update(self, layer: str) -> Update | None:
        """Return the update that a layer made at an earlier step, if its weights still hold."""
        if self.updates is None or current().record is not None:
            return None
        return self.updates.get(layer)

    def weights(
        self, layer: "MixtureLinear", x_BTD: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B _ E"]:
        """Return this layer's weights of the experts: decided by its gate group, or by hand."""
        if self.fixed is not None:
            used = RoutingWeights(self.fixed.of(layer.name, self.shape[0]), None)
        elif self._reads_encoder(layer, x_BTD):
            used = self._decided_by_encoder_tokens(layer)
        else:
            if layer.group not in self.decided:
                self.decided[layer.group] = self._decide(layer, x_BTD)
            used = RoutingWeights(self.decided[layer.group], self.mask_BT)
        state = current()
        if state.held is not None and self.fixed is None:
            used = state.held.over(used)
        if state.record is not None:
            state.record[layer.name] = used
        return used.weights_BTE

    def context(
        self,
        config: GateConfig,
        hidden_BTD: Float[Tensor, "B T D"],
        mask_BT: Bool[Tensor, "B T"],
        state_BF: Float[Tensor, "B F"] | None = None,
        segments_BT: Int[Tensor, "B T"] | None = None,
        pooling: AttentionPooling | None = None,
    ) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B F"] | None]:
        """Return what gates read of an input, and the state of its running mean.

        See `loramix.mixture.context.read`. It is computed once for all layers that read the input.
        """
        last = self._context
        if last is None or not last.is_of(hidden_BTD, mask_BT, state_BF, pooling):
            found = read(config, hidden_BTD, mask_BT, state_BF, segments_BT, pooling)
            self._context = last = _Context(hidden_BTD, mask_BT, state_BF, pooling, found)
        return last.found

    def down(
        self, x_BTD: Float[Tensor, "B T D"], stacked: "StackedA", index: int
    ) -> Float[Tensor, "B T R"]:
        """Return A x of all experts of the layer `index` among those that share `stacked`.

        One product serves all layers that read the same input.
        """
        last = self._product
        fits = last is not None and last.x_BTD is x_BTD and last.stacked is stacked
        if last is None or not fits or index not in last.parts:
            last = _SharedProduct(x_BTD, stacked, dict(enumerate(stacked(x_BTD))))
            self._product = last
        low_BTR = last.parts.pop(index)
        if not last.parts:
            # Dropped once q, k and v have taken their part, or backward would keep it alive.
            self._product = None
        return low_BTR

    def _reads_encoder(self, layer: "MixtureLinear", x_BTD: Tensor) -> bool:
        """Return whether the layer, of keys or values in cross-attention, reads encoder tokens.

        Prompt gates have no use for the difference: their one decision holds for all tokens.
        """
        if self.encoder is None or layer.config.context == "prompt":
            return False
        return x_BTD is self.encoder.hidden_BSD

    def _decide(self, layer: "MixtureLinear", x_BTD: Float[Tensor, "B T D"]) -> Tensor:
        """Let the gate decide: (B, 1, E) for a row, or (B, T, E) for its tokens."""
        gate, config = layer.gate, layer.config
        if gate is None:
            raise MixtureError(
                f"layer '{layer.name}' runs before '{layer.reader}', whose input the gate of "
                f"'{layer.group}' reads; use scope='layer' with this base model"
            )
        if self.requests is not None:
            evidence = self._evidence(layer, "stack")
            return self.requests.decide(gate, layer.group, x_BTD, evidence)
        context_BTD, mask_BT = self.read(layer, x_BTD)
        weights_BTE: Tensor = gate(context_BTD, mask_BT, self._evidence(layer, "stack"))
        if self.segments_BT is not None and config.context == "prompt":
            return spread(weights_BTE, self.segments_BT)
        return weights_BTE

    def read(
        self, layer: "MixtureLinear", x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B _ _"], Bool[Tensor, "B _"]]:
        """Return what the gate of a layer reads, and which of it is real.

        That is the layer's input or, for a prompt gate in a decoder, the encoder's output.
        """
        config, pooling = layer.config, layer.group_gate.pooling
        if config.context == "prompt" and self.encoder is not None:
            encoder = self.encoder
            tokens = encoder.mean_B1D, encoder.one_B1
            if pooling is not None:
                tokens = encoder.hidden_BSD, encoder.mask_BS
            context_B1D, _ = self.context(config, *tokens, pooling=pooling)
            return context_B1D, encoder.one_B1
        if self.mask_BT is None or self.mask_BT.shape != x_BTD.shape[:2]:
            raise MixtureError(
                f"layer '{layer.name}' reads input of shape {list(x_BTD.shape)}, which are not the "
                "tokens of its stack, so its gate cannot tell which of them are real"
            )
        state_BF = self.states.get(layer.group)
        context_BTD, state_BF = self.context(
            config, x_BTD, self.mask_BT, state_BF, self.segments_BT, pooling
        )
        if state_BF is not None:
            self.states[layer.group] = state_BF
        return context_BTD, self.mask_BT

    def note(self, layer: "MixtureLinear", x_BTD: Float[Tensor, "B T D"]) -> None:
        """Note what the gate of a layer reads in a first pass, if it has one."""
        assert self.first is not None
        if layer.gate is not None:
            with torch.set_grad_enabled(self.learning):
                self.first[layer.name] = self.read(layer, x_BTD)

    def _evidence(self, layer: "MixtureLinear", of: str) -> Evidence | None:
        """Return the evidence that the gate of a layer carries on, if these gates do."""
        if not layer.config.carry:
            return None
        evidence = self.evidence.setdefault(of, Evidence())
        evidence.blocks = layer.block + 1
        return evidence

    def _decided_by_encoder_tokens(self, layer: "MixtureLinear") -> RoutingWeights:
        """Return the decision for the encoder's tokens; the gate may be another layer's."""
        encoder, config = self.encoder, layer.config
        assert encoder is not None
        group = f"{layer.group} of the encoder's tokens"
        if group not in self.decided:
            gate, width = layer.group_gate, encoder.hidden_BSD.shape[-1]
            if gate.width != width:
                raise MixtureError(
                    f"layer '{layer.name}' reads the encoder's output of width {width}, but the "
                    f"gate of '{layer.group}' reads width {gate.width}; "
                    "use scope='layer' with these experts"
                )
            context_BSD, _ = self.context(config, encoder.hidden_BSD, encoder.mask_BS)
            evidence = self._evidence(layer, "encoder")
            self.decided[group] = gate(context_BSD, encoder.mask_BS, evidence)
        return RoutingWeights(self.decided[group], encoder.mask_BS)


def open_call(call: Call) -> None:
    """Make `call` the current one until `close_call`."""
    state = current()
    call.outer = state.call
    state.call = call


def close_call(stack: nn.Module) -> Call | None:
    """Close the call that was opened for `stack` and return it; None if opening had failed."""
    state = current()
    call = state.call
    if call is None or call.stack is not stack:
        return None
    state.call = call.outer
    return call


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the `context_fn` pair for `torch.utils.checkpoint`: the second pass sees this call.

    It sees what had been decided when the first pass began, so that the gates inside decide anew
    and their gradients flow.
    """
    call = current().call
    if call is not None:
        # What the last layer before has read would be kept until the second pass has run.
        call._context = call._product = None
    again = call and replace(
        call,
        decided=dict(call.decided),
        states=dict(call.states),
        evidence={of: replace(each) for of, each in call.evidence.items()},
    )
    return nullcontext(), in_call(again)
