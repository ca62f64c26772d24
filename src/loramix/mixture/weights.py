"""Routing weights: those that a layer used, and those that are set by hand."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loramix.errors import MixtureError, did_you_mean
from loramix.mixture.context import masked_mean
from loramix.mixture.state import current, fixing
from loramix.mixture.update import Update

# By expert, for all rows or one by one; "gates" lets them decide within a block of fixed weights.
Weights: TypeAlias = Mapping[str, float] | Sequence[Mapping[str, float]] | Literal["gates"]


class RoutingWeights(NamedTuple):
    """The weights of the experts in one layer: for each row, or for each token of it.

    mask_BT: the real tokens, where there are weights for each.
    """

    weights_BTE: Float[Tensor, "B _ E"]
    mask_BT: Bool[Tensor, "B T"] | None

    @property
    def row_mean(self) -> Float[Tensor, "B E"]:
        """The mean over each row's real tokens."""
        if self.mask_BT is None or self.weights_BTE.shape[1] == 1:
            return self.weights_BTE.mean(1)
        return masked_mean(self.weights_BTE, self.mask_BT)[:, 0]


@dataclass(frozen=True)
class FixedWeights:
    """Weights set by hand: of all layers, or by layer; one row for all sequences, or one for each.

    updates: in generation, the layers' updates at these weights, by the number of rows; a row of
        weights then stands for all beams of its sequence. None elsewhere.
    """

    weights: Float[Tensor, "B E"] | Mapping[str, Float[Tensor, "B E"]]
    updates: dict[int, dict[str, Update]] | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        """The number of sequences that have weights of their own."""
        by_layer = self.weights
        return len(by_layer if isinstance(by_layer, Tensor) else next(iter(by_layer.values())))

    def of(self, layer: str, rows: int) -> Float[Tensor, "B 1 E"]:
        """Return a layer's weights for `rows` sequences.

        Raises MixtureError if there are weights for more or fewer.
        """
        weights_BE = self.weights if isinstance(self.weights, Tensor) else self.weights[layer]
        own = len(weights_BE)
        beams = self.updates is not None and rows % own == 0
        if own not in (1, rows) and not beams:
            raise MixtureError(
                f"there are fixed weights for {own} rows, but the call has {rows}; "
                "give one dict per row"
            )
        return weights_BE.repeat_interleave(rows // own, 0)[:, None]

    def same_as(self, other: "FixedWeights | None") -> bool:
        """Return whether a cache that was filled at the weights `other` can go on at these."""
        if other is None:
            return False
        if other.weights is self.weights:
            return True
        if isinstance(self.weights, Tensor) and isinstance(other.weights, Tensor):
            return torch.equal(self.weights, other.weights)
        return False


@dataclass(frozen=True)
class HeldRows:
    """Weights set by hand in some rows of a batch, while the gates decide in the others.

    Unlike `FixedWeights` they are no part of what a cache was filled at: whoever goes on with the
    cache holds the same rows again.
    """

    held_B11: Bool[Tensor, "B 1 1"]
    weights_B1E: Float[Tensor, "B 1 E"]

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, float] | None], experts: Sequence[str]
    ) -> "HeldRows | None":
        """Return the rows that have weights; None if all are left to the gates."""
        if all(row is None for row in rows):
            return None
        held = torch.tensor([row is not None for row in rows])
        return cls(
            held[:, None, None], torch.stack([row_of(row or {}, experts) for row in rows])[:, None]
        )

    def over(self, decided: RoutingWeights) -> RoutingWeights:
        """Return what the gates decided, but for the rows that are held."""
        weights_BTE = decided.weights_BTE
        held_B11 = self.held_B11.to(weights_BTE.device)
        weights_B1E = self.weights_B1E.to(weights_BTE.device, weights_BTE.dtype)
        return decided._replace(weights_BTE=torch.where(held_B11, weights_B1E, weights_BTE))


def by_hand(
    weights: Mapping[str, float] | Sequence[Mapping[str, float]], experts: Sequence[str]
) -> FixedWeights:
    """Return weights by expert, for all rows or one by one, as tensors in the experts' order."""
    rows = [weights] if isinstance(weights, Mapping) else list(weights)
    if not rows:
        raise MixtureError("there are no fixed weights in the list; give one dict per row")
    return FixedWeights(torch.stack([row_of(each, experts) for each in rows]))


def row_of(weights: Mapping[str, float], experts: Sequence[str]) -> Float[Tensor, " E"]:
    """Return weights in the experts' order, 0 for those that are not named."""
    for name, weight in weights.items():
        index_of(name, experts)
        if not math.isfinite(weight):
            raise MixtureError(f"the weight of expert '{name}' is {weight}, which is no number")
    return torch.tensor([float(weights.get(name, 0.0)) for name in experts])


def index_of(name: str, experts: Sequence[str]) -> int:
    """Return an expert's place; raises MixtureError if there is none of this name."""
    if name not in experts:
        raise MixtureError(
            f"there is no expert '{name}'{did_you_mean(name, experts)}; "
            f"the experts are {list(experts)}"
        )
    return list(experts).index(name)


class OpenBlocks:
    """The blocks of one mixture in which weights are fixed, and the threads that they cannot reach.

    A block holds in its own thread. A thread that is started inside it, as streaming servers start
    one for every generation, would fall back to the gates without a word.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._older: dict[object, frozenset[int]] = {}  # block -> threads that began before it

    @contextmanager
    def fixing(self, weights: FixedWeights) -> Iterator[None]:
        """Replace the gates' decisions by these weights inside the block, in this thread."""
        block = object()
        older = frozenset(thread.ident or 0 for thread in threading.enumerate())
        with self._lock:
            self._older[block] = older
        try:
            with fixing(weights):
                yield
        finally:
            with self._lock:
                del self._older[block]

    def of_call(
        self, weights: Weights | None, experts: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Fix the weights of one call or, with None, make sure that those of a block reach it."""
        if weights == "gates":
            return fixing(None)
        if weights is not None:
            assert not isinstance(weights, str)
            return fixing(by_hand(weights, experts))
        if current().fixed is None:
            self._check()
        return nullcontext()

    def _check(self) -> None:
        """Raise MixtureError if this thread was started while a block of another one was open."""
        if not self._older:
            return
        own = threading.get_ident()
        with self._lock:
            reached = all(own in older for older in self._older.values())
        if not reached:
            raise MixtureError(
                "this thread was started while another was inside mixture.fixed(…), which holds "
                "in its own thread alone; pass the weights to the call, which holds in any "
                "thread: mixture.generate(…, weights={…}) or mixture(…, weights={…}); "
                "weights='gates' lets the gates decide"
            )

    def __reduce__(self) -> tuple[type["OpenBlocks"], tuple[()]]:
        return OpenBlocks, ()  # a copied mixture has no open blocks
