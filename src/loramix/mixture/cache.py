"""What a gate must remember between the steps of cached generation, carried by the cache itself.

A prompt gate remembers its weights, a running mean its sum and count: tensors with one row per
sequence. Whatever reorders, repeats or copies the rows of the cache (beam search, contrastive
search, `copy.deepcopy`) does so with them.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.update import Update

if TYPE_CHECKING:
    from transformers import Cache


class Carried(NamedTuple):
    """Decisions (rows, 1, E) and states of running means (rows, F), by the name of what shares the
    gate, and the updates that layers have made of decisions, by layer."""

    decided: dict[str, Tensor]
    states: dict[str, Tensor]
    updates: dict[str, Update]

    @property
    def rows(self) -> int | None:
        """For how many sequences this holds; None if it holds nothing."""
        return next(
            (len(value) for part in (self.decided, self.states) for value in part.values()), None
        )

    def rearranged(self, rows: Tensor) -> "Carried":
        """Return the same for these rows."""
        return Carried(
            {name: value[rows.to(value.device)] for name, value in self.decided.items()},
            {name: value[rows.to(value.device)] for name, value in self.states.items()},
            {name: update.rearranged(rows) for name, update in self.updates.items()},
        )


def carry(
    cache: "Cache",
    decided: dict[str, Tensor],
    states: dict[str, Tensor],
    updates: dict[str, Update],
) -> None:
    """Make `cache` carry these from now on."""
    if not isinstance(cache, _Carrier):
        cache.__class__ = _carrier_of(type(cache))
    cache.loramix_carried = Carried(decided, states, updates)


def carried_by(cache: "Cache") -> Carried | None:
    """Return what `cache` carries; None if no mixture filled it."""
    return getattr(cache, "loramix_carried", None)


class _Carrier:
    """The methods of a cache that act on rows, acting on what it carries as well."""

    loramix_carried: Carried | None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.loramix_carried is not None:
            self._select(torch.arange(self.loramix_carried.rows or 0).repeat_interleave(repeats))

    def crop(self, *args: int, **kwargs: int) -> None:
        if self.loramix_carried is not None and self.loramix_carried.states:
            raise MixtureError(
                "a running mean cannot take tokens back, so its cache cannot be cropped (as "
                "assisted generation does); "
                "use context='prompt' or 'token'"
            )
        super().crop(*args, **kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.loramix_carried = None

    def _select(self, rows: Tensor) -> None:
        if self.loramix_carried is not None:
            self.loramix_carried = self.loramix_carried.rearranged(rows)


def _carrier_of(kind: type) -> type:
    """Return a subclass of a cache class that carries; it keeps its name, and `isinstance`
    holds.
    """
    return type(kind.__name__, (_Carrier, kind), {})
