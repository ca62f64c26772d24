"""The rows that generate together: one cache, to which rows are joined and from which they leave.

Rows stand flush right: a shorter one has padding on its left, which its mask hides. What the gates
have decided for a row travels in the cache (`loramix.mixture.cache`), and is joined with it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutput

from loramix.errors import MixtureError
from loramix.mixture.masks import CACHES
from loramix.mixture.model import MixtureModel
from loramix.mixture.state import recording
from loramix.serving.caches import give_room, join, joinable, select, trim
from loramix.serving.routing import RoutingSums
from loramix.serving.rows import Row

if TYPE_CHECKING:
    from transformers.modeling_outputs import ModelOutput


@dataclass
class Encoded:
    """An encoder's output, padded on the right."""

    hidden_BSD: Float[Tensor, "B S D"]
    mask_BS: Bool[Tensor, "B S"]

    def select(self, rows: Int[Tensor, " b"]) -> "Encoded":
        """Return some of the rows, no wider than they need."""
        mask_BS = self.mask_BS[rows]
        width = int(mask_BS.sum(1).max())
        return Encoded(self.hidden_BSD[rows][:, :width], mask_BS[:, :width])

    def join(self, other: "Encoded") -> "Encoded":
        """Return these rows and the others below them."""
        width = max(self.mask_BS.shape[1], other.mask_BS.shape[1])
        both = [
            (
                pad(each.hidden_BSD, (0, 0, 0, width - each.mask_BS.shape[1])),
                pad(each.mask_BS, (0, width - each.mask_BS.shape[1])),
            )
            for each in (self, other)
        ]
        hidden, masks = zip(*both, strict=True)
        return Encoded(torch.cat(hidden), torch.cat(masks))


@dataclass(eq=False)  # one is itself alone
class Batch:
    """Rows, and what the model keeps of them.

    cache_name: under which the base takes its cache. mask_BT: which columns of the cache are tokens
    of each row. encoded: of an encoder-decoder.
    """

    rows: list[Row]
    cache: Cache
    cache_name: str
    mask_BT: Bool[Tensor, "B T"]
    routing: RoutingSums
    encoded: Encoded | None = None

    @property
    def width(self) -> int:
        """The number of columns of the cache."""
        return self.mask_BT.shape[1]

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave, and the columns that nobody needs any more."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        self.rows = [self.rows[row] for row in rows]
        self.mask_BT = self.mask_BT[index]
        self.routing.select(index)
        unused = self.width - int(self.mask_BT.sum(1).max())
        encoded = self.encoded and self.encoded.select(index)
        select(self.cache, index, columns=encoded.mask_BS.shape[1] if encoded else None)
        self.encoded = encoded
        if unused and trim(self.cache, unused):
            self.mask_BT = self.mask_BT[:, unused:]

    def can_join(self, other: "Batch", *, padded: bool) -> bool:
        """Return whether the rows of another batch can be taken over; padded: at other lengths."""
        return joinable(self.cache) and (padded or self.width == other.width)

    def join(self, other: "Batch") -> None:
        """Take over the rows of another batch."""
        width = max(self.width, other.width)
        join(self.cache, other.cache)
        self.routing.join(other.routing)
        self.rows += other.rows
        masks = [pad(each.mask_BT, (width - each.width, 0)) for each in (self, other)]
        self.mask_BT = torch.cat(masks)
        if self.encoded and other.encoded:
            self.encoded = self.encoded.join(other.encoded)


class Passes:
    """The passes of a mixture through its base: over new prompts, and over a token of each row."""

    def __init__(self, mixture: MixtureModel) -> None:
        self._mixture, self._layers = mixture, list(mixture.layers)
        parameters = inspect.signature(mixture.base.forward).parameters
        self._positions = "position_ids" in parameters
        self._last_logits = "logits_to_keep" in parameters

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        return self._mixture.device

    def begin(self, rows: list[Row]) -> tuple[Batch, Float[Tensor, "B V"]]:
        """Read the prompts of new rows; return their batch and the logits of their next tokens.

        A row that has generated already, before a pass failed, goes on where it was; it comes
        alone.
        """
        batch, logits_BV = self._read(rows)
        told = rows[0].tokens
        if told:
            logits_BV = self.go_on(batch, torch.tensor([told], device=self._mixture.device))
        return batch, logits_BV

    def go_on(self, batch: Batch, ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B V"]:
        """Read generated tokens; return the logits of the next ones."""
        width = ids_BT.shape[1]
        batch.mask_BT = pad(batch.mask_BT, (0, width), value=True)
        mask_BT = batch.mask_BT.long()
        inputs: dict[str, object] = {batch.cache_name: batch.cache}
        if batch.encoded is not None:
            inputs |= {
                "encoder_outputs": BaseModelOutput(last_hidden_state=batch.encoded.hidden_BSD),
                "attention_mask": batch.encoded.mask_BS.long(),
                "decoder_input_ids": ids_BT,
                "decoder_attention_mask": mask_BT,
            }
        else:
            inputs |= {"input_ids": ids_BT, "attention_mask": mask_BT}
            if self._positions:
                inputs["position_ids"] = _places(mask_BT)[:, -width:]
        if not self._mixture.gate_config.per_token:
            # A prompt gate's weights stay as they are: noting them again costs their kept updates.
            return _last(self._call(batch.rows, inputs))
        with recording() as record:
            output = self._call(batch.rows, inputs)
        batch.routing.add(RoutingSums.of(self._layers, record))
        return _last(output)

    def _read(self, rows: list[Row]) -> tuple[Batch, Float[Tensor, "B V"]]:
        config, device = self._mixture.config, self._mixture.device
        seq2seq = config.is_encoder_decoder
        ids_BT, mask_BT = _side_by_side([row.job.ids for row in rows], left=not seq2seq)
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        inputs: dict[str, object] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        one_B1 = torch.ones(len(rows), 1, dtype=torch.long, device=device)
        if seq2seq:
            inputs["decoder_input_ids"] = one_B1 * config.decoder_start_token_id
        elif self._positions:
            inputs["position_ids"] = _places(mask_BT)
        with recording() as record:
            output = self._call(rows, inputs)
        name, cache = _cache(output)
        give_room(cache)
        routing = RoutingSums.of(self._layers, record)
        if seq2seq:
            encoded = Encoded(output.encoder_last_hidden_state, mask_BT.bool())
            batch = Batch(rows, cache, name, one_B1.bool(), routing, encoded)
        else:
            batch = Batch(rows, cache, name, mask_BT.bool(), routing)
        return batch, _last(output)

    def _call(self, rows: list[Row], inputs: dict[str, object]) -> "ModelOutput":
        if self._last_logits:
            inputs["logits_to_keep"] = 1
        with self._mixture.holding([row.job.weights for row in rows]):
            return self._mixture(**inputs, use_cache=True)


def _cache(output: "ModelOutput") -> tuple[str, Cache]:
    """Return the cache that a pass has filled, and its name; raises MixtureError without one."""
    for name in CACHES:
        cache = getattr(output, name, None)
        if isinstance(cache, Cache):
            return name, cache
    raise MixtureError("this base returns no cache that can be gone on with, so it is not served")


def _last(output: "ModelOutput") -> Float[Tensor, "B V"]:
    """Return the logits of the last place."""
    logits_BTV: Tensor = output.logits
    return logits_BTV[:, -1]


def _side_by_side(
    prompts: Sequence[Sequence[int]], *, left: bool
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return prompts as one tensor, padded on the left or the right, and its mask."""
    width = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        place = slice(width - len(ids), None) if left else slice(len(ids))
        ids_BT[row, place] = torch.tensor(ids)
        mask_BT[row, place] = 1
    return ids_BT, mask_BT


def _places(mask_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return each token's place in its row; 0 for padding."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)
