"""The share of the right expert's gain that a model has, by loss: of every task, and of all.

    share = (loss of base - loss of model) / (loss of base - loss of the task's own expert)

with losses per token over the tokens of a task's references. It puts tasks of different difficulty
on one scale: 0 is the base, 1 the right expert, and more than 1 is better than whoever knows the
task. Tasks on which the right expert gains nothing certain have no share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loramix.comparison.scores import Scores
from loramix.comparison.statistics import Estimate, mean_of, share_of_gain
from loramix.experiment.labels import BASE, ORACLE

MEASURE = "share_of_gain"


@dataclass(frozen=True)
class Shares:
    """A model's shares on a test set, by task."""

    by_task: dict[str, Estimate]

    @property
    def mean(self) -> Estimate:
        """The mean over tasks."""
        return mean_of(list(self.by_task.values()))

    @property
    def worst(self) -> str:
        """The task with the smallest share."""
        return min(self.by_task, key=lambda task: self.by_task[task].value)


def shares(scores: Scores, row: str, test_set: str) -> Shares | None:
    """Return a model's shares on a test set; None unless it, the base and the oracle were measured
    on the same tasks.
    """
    found = {}
    for task in gained(scores, test_set):
        parts = scores.of(row, test_set, task)
        pair = scores.paired(parts, scores.of(ORACLE, test_set, task), "loss")
        against = scores.paired(parts, scores.of(BASE, test_set, task), "loss")
        if pair is None or against is None:
            return None
        (own, oracle, _), (_, base, _) = pair, against
        found[task] = share_of_gain(own, oracle, base)
    return Shares(found) if found else None


def gained(scores: Scores, test_set: str) -> Iterator[str]:
    """Yield the tasks of a test set on which the right expert is certainly better than the base."""
    for task in scores.tasks(test_set):
        gain = scores.difference(BASE, ORACLE, test_set, [task], "loss")
        if gain is not None and gain.low > 0:
            yield task


def sets_with_shares(scores: Scores) -> Sequence[str]:
    """Return the test sets on which there are shares, in order."""
    sets = dict.fromkeys(test_set for test_set, _ in scores.asked)
    return [each for each in sets if next(gained(scores, each), None) is not None]
