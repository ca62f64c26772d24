"""Means with bootstrap intervals, their differences, means over tasks, and shares of a gain.

Samples are drawn with replacement (Efron 1979), the same ones for every model, so that differences
are paired. Where a model was trained with several seeds, the seeds are drawn as well: the interval
covers a new training and new samples. All intervals are the middle 95 % of the draws.

Axes: `S` seeds, `N` samples, `R` replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap replicates."""

    value: float
    draws_R: Array

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return float(np.percentile(self.draws_R, 2.5))

    @property
    def high(self) -> float:
        """Where the interval ends."""
        return float(np.percentile(self.draws_R, 97.5))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.draws_R - other.draws_R)

    def exp(self) -> "Estimate":
        """Return e to the power of it: the perplexity of a loss."""
        return Estimate(float(np.exp(self.value)), np.exp(self.draws_R))


def mean(
    values_SN: Array, weights_N: Array | None = None, *, replicates: int, seed: int = 0
) -> Estimate:
    """Return the mean over seeds and samples, weighted by `weights_N` (the tokens of a loss per
    token).

    seed: of the draws. Calls with the same number of samples, replicates and seed draw the same
        samples.
    """
    seeds, samples = values_SN.shape
    weights_N = np.ones(samples) if weights_N is None else weights_N
    counts_RN = _sample_counts(samples, replicates, seed) * weights_N
    means_SR = (values_SN @ counts_RN.T) / counts_RN.sum(1)
    shares_SR = _seed_shares(seeds, replicates, seed + 1)
    value = float((values_SN @ weights_N / weights_N.sum()).mean())
    return Estimate(value, (means_SR * shares_SR).sum(0))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates on different samples, such as those of several tasks."""
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        np.mean([each.draws_R for each in estimates], axis=0),
    )


def share_of_gain(model: Estimate, best: Estimate, base: Estimate) -> Estimate:
    """Return a model's share of the gain from base to best: (model - base) / (best - base)."""
    gain, whole = model - base, best - base
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(float(np.divide(gain.value, whole.value)), gain.draws_R / whole.draws_R)


@dataclass(frozen=True)
class Tally:
    """Numbers of samples on which a model scores above another, the same, and below."""

    above: int
    same: int
    below: int


def tally(values_SN: Array, others_SN: Array) -> Tally:
    """Count the samples by the sign of the difference of the means over seeds."""
    difference_N = values_SN.mean(0) - others_SN.mean(0)
    above, below = int((difference_N > 1e-9).sum()), int((difference_N < -1e-9).sum())
    return Tally(above, len(difference_N) - above - below, below)


@lru_cache(maxsize=8)
def _sample_counts(samples: int, replicates: int, seed: int) -> Array:
    """Return the counts of every sample in every replicate (R, N)."""
    generator = np.random.default_rng([seed, samples])
    return generator.multinomial(samples, np.full(samples, 1 / samples), size=replicates).astype(
        np.float64
    )


def _seed_shares(seeds: int, replicates: int, seed: int) -> Array:
    """Return the share that each seed has in each replicate (S, R)."""
    generator = np.random.default_rng([seed, seeds])
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates).T / seeds
