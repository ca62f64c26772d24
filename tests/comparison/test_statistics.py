"""Bootstrap intervals: they hold what they claim, pair what is compared, and know several seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramix.comparison.statistics import Tally, mean, mean_of, share_of_gain, tally


def normal(seeds: int, samples: int, *, seed: int, centre: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 1.0, (seeds, samples))


def test_a_mean_is_the_mean_over_seeds_and_samples() -> None:
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    assert mean(values, replicates=100).value == pytest.approx(3.0)
    assert mean(values[:1], np.array([1.0, 2.0, 5.0]), replicates=100).value == pytest.approx(2.5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(200):
        estimate = mean(normal(1, 60, seed=trial), replicates=400)
        covered += estimate.low <= 0.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_samples_are_drawn_for_every_model() -> None:
    """Two models that differ by a constant differ by it in every draw, however much their samples
    differ.
    """
    values = normal(1, 50, seed=1) * 100
    gap = mean(values + 0.5, replicates=300) - mean(values, replicates=300)
    assert (gap.low, gap.high) == pytest.approx((0.5, 0.5))


def test_seeds_that_disagree_widen_the_interval() -> None:
    values = np.repeat(np.array([[0.0], [1.0], [2.0]]), 40, axis=1)
    estimate = mean(values, replicates=500)
    assert estimate.low < 0.5
    assert estimate.high > 1.5
    alike = mean(np.ones((3, 40)), replicates=500)
    assert alike.low == pytest.approx(alike.high)


def test_a_mean_over_tasks_has_a_narrower_interval_than_each() -> None:
    parts = [mean(normal(1, 80, seed=seed), replicates=1000, seed=seed) for seed in (3, 5)]
    both = mean_of(parts)
    assert both.value == pytest.approx((parts[0].value + parts[1].value) / 2)
    assert both.high - both.low < min(part.high - part.low for part in parts)


def test_the_share_of_a_gain() -> None:
    base, best, model = (mean(np.full((1, 10), value), replicates=100) for value in (1.0, 3.0, 2.5))
    assert share_of_gain(model, best, base).value == pytest.approx(0.75)
    assert share_of_gain(model, base, base).value == np.inf  # there is no gain to have a share of
    assert np.isnan(share_of_gain(base, base, base).value)


def test_a_tally_counts_ties() -> None:
    assert tally(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.0, 2.0, 4.0, 4.0]])) == Tally(
        1, 2, 1
    )
    assert tally(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 0.0]])) == Tally(1, 1, 0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_an_interval_lies_within_the_samples_and_holds_its_order(values: list[float]) -> None:
    estimate = mean(np.array([values]), replicates=100)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate.exp().value == pytest.approx(np.exp(estimate.value))
