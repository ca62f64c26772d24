"""Requests whose tokens lie side by side in one row, as engines with continuous batching pack them.

Each is decided as if it were alone. What is remembered of a request from pass to pass lies in
tables by slot, as it may sit out passes. A request that lost its cache comes again with its prompt
and the answer so far in one: its weights are decided anew, from the prompt alone, and its sums
start anew.

Axes: `T` tokens of the pass, `N` requests that begin, `D` input width, `E` experts, `S` slots,
`F` = D + 1: a sum and a count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.mixture.pooling import AttentionPooling, unit_scale


@dataclass(frozen=True)
class Row:
    """A request in a pass: its tokens there, and its slot.

    begins: whether nothing of it lies in the cache. prompt: the number of its prompt's tokens.
    weights_E: those it brings; None where the gates decide.
    """

    slot: int
    start: int
    end: int
    begins: bool
    prompt: int
    weights_E: Float[Tensor, " E"] | None = None


@dataclass
class Packed:
    """The requests of one pass, in the order of their tokens."""

    rows: list[Row]
    device: torch.device

    def __post_init__(self) -> None:
        self.lengths = torch.tensor([row.end - row.start for row in self.rows])
        slots = torch.tensor([row.slot for row in self.rows])
        self.slot_T = slots.repeat_interleave(self.lengths).to(self.device)
        self.beginning = [row for row in self.rows if row.begins]
        self.most_slots = int(slots.max()) + 1

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return self.rows[-1].end

    @property
    def one_each(self) -> bool:
        """Whether every request goes on by one token."""
        return not self.beginning and self.tokens == len(self.rows)


class SlotNumbers:
    """The slots of requests by their ids: the smallest that are free."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def free(self, gone: str) -> None:
        """Let others have the slot of a request that has ended."""
        self._free.append(self._slots.pop(gone))

    def __getitem__(self, name: str) -> int:
        """Return the slot of a request, a new one if it has none."""
        if name not in self._slots:
            self._slots[name] = self._free.pop() if self._free else len(self._slots)
        return self._slots[name]

    @property
    def names(self) -> set[str]:
        """The ids of the requests that have a slot."""
        return set(self._slots)


def prompts_in_parts(now: Packed) -> bool:
    """Return whether a prompt is not all there, or the cache holds a part of it."""
    return any(
        row.end - row.start < row.prompt if row.begins else row.end - row.start > 1
        for row in now.rows
    )


def prompt_contexts(
    x_TD: Float[Tensor, "T D"], beginning: Sequence[Row], pooling: AttentionPooling | None
) -> Float[Tensor, "N D"]:
    """Return what a gate reads of the prompt of every request that begins.

    pooling: of the gate; None: the mean.
    """
    prompts = [x_TD[row.start : row.start + row.prompt] for row in beginning]
    if pooling is None:
        return unit_scale(torch.stack([prompt_PD.float().mean(0) for prompt_PD in prompts]))
    found = []
    for prompt_PD in prompts:
        member_11P = torch.ones_like(prompt_PD[None, None, :, 0], dtype=torch.bool)
        found.append(pooling(prompt_PD[None], member_11P)[0])
    return torch.cat(found)


def running_means(
    x_TD: Float[Tensor, "T D"], now: Packed, sums_SF: Float[Tensor, "_ F"] | None
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "S F"]]:
    """Return, for every token, the float32 mean of its request so far; and the sums of all slots.

    sums_SF: those of the passes before, which are overwritten where they have room.
    """
    counted_TF = torch.cat([x_TD.float(), x_TD.new_ones((len(x_TD), 1)).float()], -1)
    sums_SF = grown(sums_SF, now.most_slots, counted_TF)
    if now.one_each:
        sums_TF = sums_SF[now.slot_T] + counted_TF
        sums_SF[now.slot_T] = sums_TF
    else:
        sums_TF = torch.empty_like(counted_TF)
        for row in now.rows:
            own_TF = counted_TF[row.start : row.end].cumsum(0)
            sums_TF[row.start : row.end] = own_TF if row.begins else own_TF + sums_SF[row.slot]
            sums_SF[row.slot] = sums_TF[row.end - 1]
    return sums_TF[:, :-1] / sums_TF[:, -1:], sums_SF


def grown(table: Tensor | None, rows: int, like: Tensor) -> Tensor:
    """Return a table of at least so many rows, that begins with the given one."""
    if table is not None and len(table) >= rows:
        return table
    size = max(rows, 2 * len(table) if table is not None else 0)
    found = like.new_zeros((size, *like.shape[1:]))
    if table is not None:
        found[: len(table)] = table
    return found
