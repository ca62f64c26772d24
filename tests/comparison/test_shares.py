"""Shares of the right expert's gain, on losses that are made up."""

from pathlib import Path

import numpy as np
import pytest

from loramix.comparison.scores import ModelScores, Scores
from loramix.comparison.shares import sets_with_shares, shares
from loramix.experiment.labels import BASE, ORACLE

LOSSES = {BASE: (4.0, 3.0), ORACLE: (2.0, 1.0), "good": (2.0, 1.2), "bad": (5.0, 3.0)}


def scores(noise: float = 0.1, **more: tuple[float, float]) -> Scores:
    """Return the losses of every model on two tasks, 20 samples each, of 3 tokens."""
    spread = noise * np.sin(np.arange(20))
    parts = []
    for row, of_tasks in {**LOSSES, **more}.items():
        for task, loss in zip(("haiku", "title"), of_tasks, strict=True):
            ids, values = tuple(map(str, range(20))), {"loss": loss + spread}
            tokens = np.full(20, 3.0)
            nowhere = Path("nowhere")
            parts.append(ModelScores(row, row, 0, "named", task, ids, values, tokens, nowhere))
    return Scores(parts, replicates=100)


@pytest.mark.parametrize(
    ("row", "mean", "worst", "least"),
    [(ORACLE, 1.0, "haiku", 1.0), (BASE, 0.0, "haiku", 0.0), ("good", 0.95, "title", 0.9)],
)
def test_a_share_is_the_part_of_the_gain_that_is_kept(
    row: str, mean: float, worst: str, least: float
) -> None:
    found = shares(scores(), row, "named")
    assert found is not None
    assert found.mean.value == pytest.approx(mean)
    assert found.by_task[worst].value == pytest.approx(least)
    if row == "good":
        assert found.worst == worst


def test_who_is_worse_than_the_base_has_less_than_nothing() -> None:
    found = shares(scores(), "bad", "named")
    assert found is not None
    assert found.by_task["haiku"].value == pytest.approx(-0.5)
    assert found.worst == "haiku"


def test_a_task_on_which_the_right_expert_gains_nothing_has_no_share() -> None:
    made = scores(**{ORACLE: (2.0, 3.0)})
    found = shares(made, "good", "named")
    assert found is not None
    assert list(found.by_task) == ["haiku"]
    assert sets_with_shares(made) == ["named"]
    assert sets_with_shares(scores(**{ORACLE: (4.0, 3.0)})) == []
