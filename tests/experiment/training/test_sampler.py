"""The order of training samples: tasks take turns, and similar lengths share a batch."""

from loramix.experiment.training.sampler import TurnSampler

LENGTHS = [(7 * index) % 101 for index in range(160)]


def cut(order: list[int], size: int) -> list[list[int]]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def padding(order: list[int]) -> int:
    """Return the padding tokens of an epoch in batches of 8."""
    total = 0
    for batch in cut(order, 8):
        lengths = [LENGTHS[index] for index in batch]
        total += max(lengths) * len(lengths) - sum(lengths)
    return total


def test_tasks_take_turns_one_batch_each() -> None:
    order = list(TurnSampler([10, 6], batch=4, seed=1))
    tasks = [[int(index >= 10) for index in batch] for batch in cut(order, 4)]
    assert tasks == [[0] * 4, [1] * 4, [0] * 4, [1] * 4, [0] * 4]
    assert set(order) == set(range(16))


def test_every_epoch_has_its_own_order() -> None:
    for lengths in (None, LENGTHS[:16]):
        sampler = TurnSampler([10, 6], batch=4, seed=1, lengths=lengths)
        first = list(sampler)
        assert list(sampler) == first
        sampler.set_epoch(1)
        assert list(sampler) != first


def test_samples_of_similar_length_come_in_one_batch() -> None:
    order = list(TurnSampler([96, 64], batch=8, seed=1, lengths=LENGTHS))
    batches = cut(order, 8)
    assert sorted(order) == list(range(160))
    assert [int(batch[0] >= 96) for batch in batches[:4]] == [0, 1, 0, 1]
    assert padding(order) < padding(list(TurnSampler([96, 64], batch=8, seed=1))) / 4


def test_batches_of_similar_length_come_in_random_order() -> None:
    order = list(TurnSampler([96, 64], batch=8, seed=1, lengths=LENGTHS))
    longest = [max(LENGTHS[index] for index in batch) for batch in cut(order, 8)]
    assert longest != sorted(longest, reverse=True)
