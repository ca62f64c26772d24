"""Caches whose rows come and go: joined below one another, selected, and cut to what is needed."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from loramix.mixture.cache import Carried, carried_by, carry

_ROOM = 64  # columns


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer with room for the tokens to come, which a `DynamicLayer` copies at every one.

    Whoever exchanges `keys` and `values` need not know of it.
    """

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, Tensor] | None = None
    _within: Tensor | None = None  # the keys that lie in it

    @classmethod
    def of(cls, layer: DynamicLayer) -> "RoomyLayer":
        """Return a layer with the keys and values of another."""
        roomy = cls()
        roomy.lazy_initialization(layer.keys, layer.values)
        roomy.keys, roomy.values = layer.keys, layer.values
        return roomy

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values of further tokens, and return all."""
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._room is None or self._within is not self.keys or end > self._room[0].shape[-2]:
            spare = (0, 0, 0, end - begin + _ROOM)
            self._room = pad(self.keys, spare), pad(self.values, spare)
        for room, added in zip(self._room, (key_states, value_states), strict=True):
            room[..., begin:end, :] = added
        keys, values = self._room
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._within = self.keys
        return self.keys, self.values


def joinable(cache: Cache) -> bool:
    """Return whether every layer keeps all of its keys and values, so that rows can be joined."""
    kinds, parts = (DynamicLayer, RoomyLayer), _parts(cache)
    return all(type(layer) in kinds for part, _ in parts for layer in part.layers)


def give_room(cache: Cache) -> None:
    """Make room for further tokens in the layers that hold the decoder's own."""
    if joinable(cache):
        for part, own in _parts(cache):
            if own:
                part.layers = [RoomyLayer.of(layer) for layer in part.layers]


def join(cache: Cache, other: Cache) -> None:
    """Put the rows of `other` below those of `cache`; shorter ones are padded.

    Keys and values of a decoder's own tokens are padded on the left, an encoder's on the right.
    """
    for (part, left), (second, _) in zip(_parts(cache), _parts(other), strict=True):
        for layer, added in zip(part.layers, second.layers, strict=True):
            width = max(layer.keys.shape[-2], added.keys.shape[-2])
            layer.keys = _stacked(layer.keys, added.keys, width, left=left)
            layer.values = _stacked(layer.values, added.values, width, left=left)
    mine, others = carried_by(cache), carried_by(other)
    assert mine is not None
    assert others is not None
    # The layers' updates are made anew, from what was decided for all rows.
    decided = {key: torch.cat([each, others.decided[key]]) for key, each in mine.decided.items()}
    states = {key: torch.cat([each, others.states[key]]) for key, each in mine.states.items()}
    carry(cache, Carried(decided, states))


def select(cache: Cache, rows: Int[Tensor, " b"], *, columns: int | None) -> None:
    """Keep some rows; and of an encoder's keys and values the first `columns`."""
    cache.reorder_cache(rows)
    if isinstance(cache, EncoderDecoderCache) and columns is not None:
        for layer in cache.cross_attention_cache.layers:
            layer.keys, layer.values = layer.keys[..., :columns, :], layer.values[..., :columns, :]
    carried = carried_by(cache)
    if carried is not None:  # an update that named few experts may be one for all of them again
        carry(cache, Carried(carried.decided, carried.states))


def trim(cache: Cache, columns: int) -> bool:
    """Leave out the first columns, which are padding in all rows; return whether that can be done.

    Layers that keep a window or a sum have no such columns.
    """
    if not joinable(cache):
        return False
    for part, own in _parts(cache):
        for layer in part.layers if own else ():
            layer.keys, layer.values = layer.keys[..., columns:, :], layer.values[..., columns:, :]
    return True


def _parts(cache: Cache) -> Iterator[tuple[Cache, bool]]:
    """Yield the caches of which this one is made, and whether it is of the decoder's own tokens."""
    if isinstance(cache, EncoderDecoderCache):
        yield cache.self_attention_cache, True
        yield cache.cross_attention_cache, False
    else:
        yield cache, True


def _stacked(upper: Tensor, lower: Tensor, width: int, *, left: bool) -> Tensor:
    def wide(values: Tensor) -> Tensor:
        missing = width - values.shape[-2]
        return (
            pad(values, (0, 0, missing, 0) if left else (0, 0, 0, missing)) if missing else values
        )

    return torch.cat([wide(upper), wide(lower)])
