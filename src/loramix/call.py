"""What the layers need to know of the call that they are part of, kept per thread and never shared.

A base model calls its linear layers with their input alone. The mixture therefore opens a `Call` around each stack of
layers (the encoder, the decoder, or the whole of a decoder-only model), and a layer asks for the one it is in.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.gate import masked_mean

Value = TypeVar("Value")


class Memory(NamedTuple):
    """What a decoder reads of its encoder: the output, its valid tokens, and their float32 mean as one token."""

    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]
    mean_B1D: Float[Tensor, "B 1 D"]


@dataclass(frozen=True)
class Fixed:
    """Weights set by hand, for all layers or by layer: one row for all sequences or one for each.

    repeats: in generation, a row stands for all its beams.
    """

    weights: Float[Tensor, "B E"] | Mapping[str, Float[Tensor, "B E"]]
    repeats: bool = False

    def of(self, layer: str, rows: int) -> Float[Tensor, "B 1 E"]:
        """Return a layer's weights for `rows` sequences; raises MixtureError if they are of more or fewer rows."""
        weights_BE = self.weights if isinstance(self.weights, Tensor) else self.weights[layer]
        own = len(weights_BE)
        if own != 1 and (rows % own or (rows != own and not self.repeats)):
            raise MixtureError(
                f"there are fixed weights for {own} rows, but the call has {rows}; give one dict per row"
            )
        return weights_BE.repeat_interleave(rows // own, 0)[:, None]


@dataclass
class Call:
    """One pass through one stack.

    `mask_BT` marks the tokens of the stack's own input that a gate may read. `decided` holds the gates' decisions, by
    the name of what shares the gate: first those that came with a cache, then those of this pass. `states` holds the
    states of running means likewise. `fixed` overrides every gate.
    """

    stack: nn.Module
    mask_BT: Bool[Tensor, "B T"] | None  # None where no gate will read: all is decided or fixed
    memory: Memory | None = None
    fixed: "Fixed | None" = None
    decided: dict[str, Float[Tensor, "B _ E"]] = field(default_factory=dict)
    states: dict[str, Float[Tensor, "B F"]] = field(default_factory=dict)
    outer: "Call | None" = None


class Used(NamedTuple):
    """The weights that a layer used: for each row, or for each token, of which `mask_BT` marks the real ones."""

    weights: Float[Tensor, "B _ E"]
    mask_BT: Bool[Tensor, "B T"] | None

    @property
    def row_mean(self) -> Float[Tensor, "B E"]:
        """The mean over each row's real tokens."""
        if self.mask_BT is None or self.weights.shape[1] == 1:
            return self.weights.mean(1)
        return masked_mean(self.weights, self.mask_BT)[:, 0]


_current: ContextVar[Call | None] = ContextVar("loramix_call", default=None)
_record: ContextVar[dict[str, Used] | None] = ContextVar("loramix_record", default=None)


def current_call() -> Call | None:
    """Return the innermost call that this thread is in."""
    return _current.get()


def open_call(call: Call) -> None:
    """Make `call` the current one until `close_call`."""
    call.outer = _current.get()
    _current.set(call)


def close_call(stack: nn.Module) -> Call | None:
    """Close the call that was opened for `stack` and return it; None if opening had failed."""
    call = _current.get()
    if call is None or call.stack is not stack:
        return None
    _current.set(call.outer)
    return call


@contextmanager
def recording() -> Iterator[dict[str, Used]]:
    """Collect the weights that every layer uses inside the block, by layer name."""
    record: dict[str, Used] = {}
    with bound(_record, record):
        yield record


def note(layer: str, used: Used) -> None:
    """Tell who records that `layer` uses these weights."""
    record = _record.get()
    if record is not None:
        record[layer] = used


@contextmanager
def bound(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """Set a context variable inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the `context_fn` pair for `torch.utils.checkpoint`: the second forward pass sees the call of the first.

    It sees what had been decided when the first began, so that the gates inside decide anew and their gradients flow.
    """
    call = _current.get()
    again = call and replace(call, decided=dict(call.decided), states=dict(call.states))
    return nullcontext(), bound(_current, again)
