"""Losses of two models on the same examples, compared pair by pair."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from loramix.experiment.answers import Loss, mean_loss

NOISE = 2.0  # standard errors
NEGLIGIBLE = 0.002  # nats per token


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences of losses, and its standard error (infinite for one pair)."""

    mean: float
    error: float

    @property
    def positive(self) -> bool:
        """Whether the mean lies above zero by more than noise, and by enough to matter."""
        return self.mean > max(NOISE * self.error, NEGLIGIBLE)


def difference(left: Sequence[Loss], right: Sequence[Loss]) -> Difference:
    pairs = [one.mean - other.mean for one, other in zip(left, right, strict=True)]
    error = stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("inf")
    return Difference(fmean(pairs), error)


def gains(before: Collection[Sequence[Loss]], after: Collection[Sequence[Loss]]) -> bool:
    """Return whether training has helped: the mean over parts falls by more than its standard
    error, and no part's loss rises by enough to matter, be it noise.

    A small rise where prompts are asked otherwise is all that shows here of gates that have come to
    rely on the wording: in words that no part has, they lose much more.
    """
    changes = [difference(*pair) for pair in zip(after, before, strict=True)]
    fall = -fmean(change.mean for change in changes)
    error = sum(change.error**2 for change in changes) ** 0.5 / len(changes)
    return fall > error and not any(change.mean > NEGLIGIBLE for change in changes)


def mean_of_means(parts: Collection[Sequence[Loss]]) -> float:
    """Return the mean over parts of their mean losses per token."""
    return fmean(map(mean_loss, parts))
