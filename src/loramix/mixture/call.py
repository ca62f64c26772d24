"""What the layers need to know of the call that they are part of, kept per thread and never shared.

A base model calls its linear layers with their input alone. The mixture therefore opens a `Call`
around each stack of layers (the encoder, the decoder, or the whole of a decoder-only model), and a
layer asks for the one it is in.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.folding import Folding
from loramix.mixture.gate import masked_mean, read
from loramix.mixture.update import Update


class Memory(NamedTuple):
    """What a decoder reads of its encoder: the output, its valid tokens, and their float32 mean as
    one valid token.
    """

    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]
    mean_B1D: Float[Tensor, "B 1 D"]
    one_B1: Bool[Tensor, "B 1"]


@dataclass(frozen=True)
class Fixed:
    """Weights set by hand, for all layers or by layer: one row for all sequences or one for each.

    updates: in generation, what the layers have made of these weights, by the number of rows; a row
        then stands for all its beams. None elsewhere.
    """

    weights: Float[Tensor, "B E"] | Mapping[str, Float[Tensor, "B E"]]
    updates: dict[int, dict[str, Update]] | None = None

    @property
    def rows(self) -> int:
        """For how many sequences there are weights."""
        return len(
            self.weights if isinstance(self.weights, Tensor) else next(iter(self.weights.values()))
        )

    def of(self, layer: str, rows: int) -> Float[Tensor, "B 1 E"]:
        """Return a layer's weights for `rows` sequences; raises MixtureError if they are of more or
        fewer rows.
        """
        weights_BE = self.weights if isinstance(self.weights, Tensor) else self.weights[layer]
        own = len(weights_BE)
        if own != 1 and (rows % own or (rows != own and self.updates is None)):
            raise MixtureError(
                f"there are fixed weights for {own} rows, but the call has {rows}; give one dict "
                "per row"
            )
        return weights_BE.repeat_interleave(rows // own, 0)[:, None]


@dataclass
class Call:
    """One pass through one stack.

    `mask_BT` marks the tokens of the stack's own input that a gate may read. `decided` holds the
    gates' decisions, by
    the name of what shares the gate: first those that came with a cache, then those of this pass.
    `states` holds the states of running means likewise. `fixed` overrides every gate. `updates`
    holds, by layer, what was made of weights that stay as they are; None where weights may change,
    or gradients are wanted. `folding` folds those updates, where that is wanted.
    """

    stack: nn.Module
    mask_BT: Bool[Tensor, "B T"] | None  # None where no gate will read: all is decided or fixed
    memory: Memory | None = None
    fixed: Fixed | None = None
    decided: dict[str, Float[Tensor, "B _ E"]] = field(default_factory=dict)
    states: dict[str, Float[Tensor, "B F"]] = field(default_factory=dict)
    updates: dict[str, Update] | None = None
    folding: Folding | None = None
    outer: "Call | None" = None
    _contexts: "tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor | None]] | None" = None
    _lows: tuple[Tensor, nn.Module, dict[int, Tensor]] | None = None

    def context(
        self,
        config: GateConfig,
        hidden_BTD: Float[Tensor, "B T D"],
        mask_BT: Bool[Tensor, "B T"],
        state_BF: Float[Tensor, "B F"] | None = None,
    ) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B F"] | None]:
        """Return what gates see of this input (`loramix.mixture.gate.read`), computed once for
        layers that read the same.
        """
        last = self._contexts
        if last is None or not (
            last[0] is hidden_BTD and last[1] is mask_BT and last[2] is state_BF
        ):
            self._contexts = last = (
                hidden_BTD,
                mask_BT,
                state_BF,
                read(config, hidden_BTD, mask_BT, state_BF),
            )
        return last[3]

    def low(
        self, x_BTD: Float[Tensor, "B T D"], downs: nn.Module, place: int
    ) -> Float[Tensor, "B T R"]:
        """Return the input as down-projected for the layer at `place`, computed once for all that
        read it.

        What every layer has fetched is kept no longer.
        """
        last = self._lows
        if last is None or not (last[0] is x_BTD and last[1] is downs and place in last[2]):
            self._lows = last = (x_BTD, downs, dict(enumerate(downs(x_BTD))))
        low_BTR = last[2].pop(place)
        if not last[2]:
            self._lows = None
        return low_BTR


class Used(NamedTuple):
    """The weights that a layer used: for each row, or for each token, of which `mask_BT` marks the
    real ones.
    """

    weights: Float[Tensor, "B _ E"]
    mask_BT: Bool[Tensor, "B T"] | None

    @property
    def row_mean(self) -> Float[Tensor, "B E"]:
        """The mean over each row's real tokens."""
        if self.mask_BT is None or self.weights.shape[1] == 1:
            return self.weights.mean(1)
        return masked_mean(self.weights, self.mask_BT)[:, 0]


@dataclass
class Here:
    """What a thread is doing.

    call: the innermost call that it is in. record: where layers note the weights that they use.
    fixed: the weights set by hand. prompt_length: of the generation that it is in. folding: of that
        generation, if it folds updates.
    """

    call: Call | None = None
    record: dict[str, Used] | None = None
    fixed: Fixed | None = None
    prompt_length: int | None = None
    folding: Folding | None = None


class _Thread(threading.local):
    """Holds an object for every thread.

    torch.compile follows the attributes of both, but would lose what it writes to a thread-local
    object itself; and it does not follow context variables.
    """

    def __init__(self) -> None:  # runs in every thread
        self.here = Here()


thread = _Thread()


def open_call(call: Call) -> None:
    """Make `call` the current one until `close_call`."""
    call.outer = thread.here.call
    thread.here.call = call


def close_call(stack: nn.Module) -> Call | None:
    """Close the call that was opened for `stack` and return it; None if opening had failed."""
    call = thread.here.call
    if call is None or call.stack is not stack:
        return None
    thread.here.call = call.outer
    return call


@contextmanager
def recording() -> Iterator[dict[str, Used]]:
    """Collect the weights that every layer uses inside the block, by layer name."""
    record: dict[str, Used] = {}
    with during(record=record):
        yield record


@contextmanager
def during(**values: object) -> Iterator[None]:
    """Set attributes of `thread.here` inside the block."""
    here = thread.here
    before = {name: getattr(here, name) for name in values}
    for name, value in values.items():
        setattr(here, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(here, name, value)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the `context_fn` pair for `torch.utils.checkpoint`: the second forward pass sees the
    call of the first.

    It sees what had been decided when the first began, so that the gates inside decide anew and
    their gradients flow. Neither sees what the last layer before has read, which would be kept
    until the second has run.
    """
    call = thread.here.call
    if call is not None:
        call._contexts = call._lows = None
    again = call and replace(call, decided=dict(call.decided), states=dict(call.states))
    return nullcontext(), during(call=again)
