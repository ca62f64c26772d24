"""What gates must remember between the steps of cached generation, carried by the cache itself.

A prompt gate remembers its weights, a running mean its sum and count: tensors with one row per
sequence. Whatever reorders, repeats or copies the rows of the cache (beam search, contrastive
search, `copy.deepcopy`) does so with them.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.update import Update
from loramix.mixture.weights import FixedWeights

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Carried:
    """What a mixture left in a cache that it filled.

    decided: gate group -> weights (rows, 1, E). states: gate group -> sum and count of a running
    mean (rows, F). updates: layer -> the update at these weights. fixed: the weights by hand at
    which the cache was filled, if it was.
    """

    decided: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    fixed: FixedWeights | None = None

    @property
    def rows(self) -> int | None:
        """The number of sequences; None if nothing here depends on it."""
        for tensors in (self.decided, self.states):
            for tensor in tensors.values():
                return len(tensor)
        return None

    def select(self, rows: Tensor) -> "Carried":
        """Select rows of the batch, as beam search does."""

        def of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {group: tensor[rows.to(tensor.device)] for group, tensor in tensors.items()}

        updates = {layer: update.select(rows) for layer, update in self.updates.items()}
        return replace(self, decided=of(self.decided), states=of(self.states), updates=updates)


def carry(cache: object, carried: Carried) -> None:
    """Make `cache` carry this from now on."""
    if not isinstance(cache, _Carrier):
        cache.__class__ = _carrier_of(type(cache))
    cache.loramix_carried = carried  # type: ignore[attr-defined]


def carried_by(cache: object) -> Carried | None:
    """Return what `cache` carries; None if no mixture has filled it."""
    return cache.loramix_carried if isinstance(cache, _Carrier) else None


class _Carrier:
    """The methods of a cache that act on rows, acting on what it carries as well."""

    loramix_carried: Carried | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.loramix_carried is not None:
            rows = torch.arange(self.loramix_carried.rows or 0)
            self._select(rows.repeat_interleave(repeats))

    def crop(self, *args: int, **kwargs: int) -> None:
        if self.loramix_carried is not None and self.loramix_carried.states:
            raise MixtureError(
                "a running mean cannot take tokens back, so its cache cannot be cropped (as "
                "assisted generation does); use context='prompt' or 'token'"
            )
        super().crop(*args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.loramix_carried = None

    def _select(self, rows: Tensor) -> None:
        if self.loramix_carried is not None:
            self.loramix_carried = self.loramix_carried.select(rows)


def _carrier_of(kind: type) -> type:
    """Return a subclass of a cache class that carries, under the name of that class."""
    return type(kind.__name__, (_Carrier, kind), {})
