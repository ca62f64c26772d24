"""The state of a thread: the call that it is in, and what has been asked of that call.

A base model calls its linear layers with their input alone, so what else a layer must know lies
here. Every thread has a state of its own: two threads can ask one mixture different things.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from loramix.errors import MixtureError

if TYPE_CHECKING:
    from loramix.mixture.call import Call
    from loramix.mixture.folding import Folding
    from loramix.mixture.weights import FixedWeights, HeldRows, RoutingWeights


@dataclass
class CallState:
    """One thread's state.

    call: the innermost call that the thread is in.
    record: where layers note the routing weights that they use, by layer name.
    fixed: the weights that replace the gates' decisions.
    held: the weights that replace them in some rows of the batch.
    prompt_lengths: of every row, (B,) or (1,), where a harness says what of a row is its prompt.
    prompt_width: the number of columns of the prompt of the generation that the thread is in.
    folding: of that generation, if it folds updates into weights.
    """

    call: "Call | None" = None
    record: "dict[str, RoutingWeights] | None" = None
    fixed: "FixedWeights | None" = None
    held: "HeldRows | None" = None
    prompt_lengths: Int[Tensor, " B"] | None = None
    prompt_width: int | None = None
    folding: "Folding | None" = None


class _States(threading.local):
    """The state of every thread.

    torch.compile follows attributes of `state`, a plain object. It would lose what it writes to a
    thread-local object itself, and it does not follow context variables.
    """

    def __init__(self) -> None:  # runs in every thread that asks
        self.state = CallState()


_states = _States()


def current() -> CallState:
    """Return the state of this thread."""
    return _states.state


def current_call(layer: str) -> "Call":
    """Return the call that this thread is in; raises MixtureError outside of one."""
    call = _states.state.call
    if call is None:
        raise MixtureError(
            f"layer '{layer}' was called outside its mixture; call the whole model instead"
        )
    return call


@contextmanager
def in_call(call: "Call | None") -> Iterator[None]:
    """Make `call` the current one inside the block."""
    state = current()
    before, state.call = state.call, call
    try:
        yield
    finally:
        state.call = before


@contextmanager
def recording() -> "Iterator[dict[str, RoutingWeights]]":
    """Collect the routing weights that every layer uses inside the block, by layer name."""
    state = current()
    before, state.record = state.record, {}
    try:
        yield state.record
    finally:
        state.record = before


@contextmanager
def fixing(weights: "FixedWeights | None") -> Iterator[None]:
    """Replace the gates' decisions by these weights in the block; None lets the gates decide."""
    state = current()
    before, state.fixed = state.fixed, weights
    try:
        yield
    finally:
        state.fixed = before


@contextmanager
def holding(rows: "HeldRows | None") -> Iterator[None]:
    """Replace the gates' decisions in some rows of the batch inside the block."""
    state = current()
    before, state.held = state.held, rows
    try:
        yield
    finally:
        state.held = before


@contextmanager
def reading(prompt_lengths: Int[Tensor, " B"]) -> Iterator[None]:
    """Let the gates read the first `prompt_lengths` real tokens of every row inside the block."""
    state = current()
    before, state.prompt_lengths = state.prompt_lengths, prompt_lengths
    try:
        yield
    finally:
        state.prompt_lengths = before


@contextmanager
def generating(prompt_width: int | None, folding: "Folding | None") -> Iterator[None]:
    """Let the calls inside the block be steps of one generation."""
    state = current()
    before = state.prompt_width, state.folding
    state.prompt_width, state.folding = prompt_width, folding
    try:
        yield
    finally:
        state.prompt_width, state.folding = before
