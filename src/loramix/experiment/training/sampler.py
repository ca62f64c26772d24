"""The order of training samples: batches of one task each, and the tasks in turn."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TurnSampler(Sampler[int]):
    """Shuffled indices such that every batch holds one task alone and the tasks take turns.

    A task that runs out sits out the rest of the epoch; a last batch that would be short is filled
    up from the start of that task's order, so that batch borders stay where they are. Every epoch
    has its own order, fixed by the seed.

    sizes: the number of samples of every task; the samples lie task after task.
    lengths: of every sample; if given, batches are cut from pools of `POOL` shuffled batches sorted
        by length, and shuffled again.
    """

    POOL = 32

    def __init__(
        self, sizes: Sequence[int], batch: int, seed: int, lengths: Sequence[int] | None = None
    ) -> None:
        self.sizes, self.batch, self.seed, self.lengths = list(sizes), batch, seed, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-size // self.batch) * self.batch for size in self.sizes)

    def __iter__(self) -> Iterator[int]:
        # a factor beyond any number of epochs: no two pairs of seed and epoch share an order
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        batches = [self._batches(task, generator) for task in range(len(self.sizes))]
        for turn in range(max(len(of_task) for of_task in batches)):
            for of_task in batches:
                if turn < len(of_task):
                    yield from of_task[turn]

    def _batches(self, task: int, generator: torch.Generator) -> list[list[int]]:
        """Return one task's batches in their order of this epoch."""
        start = sum(self.sizes[:task])
        drawn = torch.randperm(self.sizes[task], generator=generator).tolist()
        order = [start + index for index in drawn]
        if self.lengths is not None:
            order = self._by_length(order, self.lengths)
        short = -len(order) % self.batch  # samples missing from the last batch
        # repeated, as a task may have fewer samples than a batch
        batches = _cut([*order, *(order * self.batch)[:short]], self.batch)
        if self.lengths is not None:  # a pool's batches go from long to short otherwise
            drawn = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[index] for index in drawn]
        return batches

    def _by_length(self, order: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """Return the order with every pool sorted, the longest samples first."""
        sorted_order: list[int] = []
        for pool in _cut(order, self.POOL * self.batch):
            sorted_order += sorted(pool, key=lengths.__getitem__, reverse=True)
        return sorted_order


def _cut(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[first : first + size]) for first in range(0, len(order), size)]
