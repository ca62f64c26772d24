"""The scores of all models on all questions, aligned so that any two models can be compared sample
by sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loramix.comparison.asking import ANSWERS, SCORES
from loramix.comparison.contenders import Contender
from loramix.comparison.statistics import Array, Estimate, Tally, mean, mean_of, tally
from loramix.experiment.recipe import Recipe
from loramix.storage.files import read_csv

ORACLE = "oracle"
_KEYS = ("task", "id", "tokens")

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Run:
    """One model, trained with one seed, on one task of a test set: a value (or nan) by measure and
    sample id.
    """

    label: str
    seed: int
    test_set: str
    task: str
    ids: tuple[str, ...]
    values: dict[str, Array]  # (N,) by measure
    tokens_N: Array
    answers: Path


class Scores:
    """All runs of a comparison; the oracle is every task's own expert."""

    def __init__(self, runs: Sequence[Run], *, replicates: int) -> None:
        self.runs, self.replicates = tuple(runs), replicates
        self._by_key: dict[tuple[str, str, str], list[Run]] = {}
        for run in runs:
            self._by_key.setdefault((run.label, run.test_set, run.task), []).append(run)

    @property
    def labels(self) -> list[str]:
        """The models, in the order of the tables."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @property
    def places(self) -> list[tuple[str, str]]:
        """The (test set, task) pairs, in order."""
        return list(dict.fromkeys((run.test_set, run.task) for run in self.runs))

    def tasks(self, test_set: str) -> list[str]:
        """Return the tasks that a test set asks for."""
        return [task for each, task in self.places if each == test_set]

    def of(self, label: str, test_set: str, task: str) -> list[Run]:
        """Return a model's runs, one for every seed; empty if it was not asked this."""
        return self._by_key.get((label, test_set, task), [])

    def measured(self, runs: Sequence[Run], measure: str) -> list[str]:
        """Return the samples on which all runs have a value."""
        source = _source(measure)
        if not runs or any(source not in run.values for run in runs):
            return []
        known_N = np.all([np.isfinite(run.values[source]) for run in runs], axis=0)
        return [each for each, known in zip(runs[0].ids, known_N, strict=True) if known]

    def estimate(
        self, runs: Sequence[Run], measure: str, ids: Sequence[str] | None = None
    ) -> Estimate | None:
        """Return the mean of a measure over runs that differ in their seed; None where it was not
        measured.

        The perplexity is that of all tokens together. ids: the samples that count; by default all
        on which it was measured.
        """
        if measure == "perplexity":
            loss = self.estimate(runs, "loss", ids)
            return loss and loss.exp()
        values_SN, kept = self._values(runs, measure, ids)
        if values_SN is None:
            return None
        weights_N = runs[0].tokens_N[kept] if measure == "loss" else None
        return mean(values_SN, weights_N, replicates=self.replicates)

    def over(
        self, label: str, test_set: str, tasks: Sequence[str], measure: str
    ) -> Estimate | None:
        """Return a model's mean of a measure over tasks; None unless it was measured on all of
        them.
        """
        means = [self.estimate(self.of(label, test_set, task), measure) for task in tasks]
        known = [each for each in means if each is not None]
        return mean_of(known) if known and len(known) == len(tasks) else None

    def difference(
        self, label: str, other: str, test_set: str, tasks: Sequence[str], measure: str
    ) -> Estimate | None:
        """Return the paired difference of two models, the mean over tasks; None unless both were
        measured on all.
        """
        pairs = [
            self.paired(self.of(label, test_set, t), self.of(other, test_set, t), measure)
            for t in tasks
        ]
        known = [own - against for own, against, _ in (pair for pair in pairs if pair is not None)]
        return mean_of(known) if known and len(known) == len(pairs) else None

    def _values(
        self, runs: Sequence[Run], measure: str, ids: Sequence[str] | None
    ) -> tuple[Array | None, Places]:
        """Return a measure by seed and sample (S, N), and the places of the samples in the runs."""
        wanted = set(self.measured(runs, measure) if ids is None else ids)
        if not wanted:
            return None, np.array([], dtype=np.intp)
        kept = np.array(
            [index for index, each in enumerate(runs[0].ids) if each in wanted], dtype=np.intp
        )
        return np.stack([run.values[_source(measure)][kept] for run in runs]), kept

    def paired(
        self, one: Sequence[Run], other: Sequence[Run], measure: str
    ) -> tuple[Estimate, Estimate, Tally] | None:
        """Return the means of two models on the samples that both have been measured on, and who is
        above how often.
        """
        common = [
            each
            for each in self.measured(one, measure)
            if each in set(self.measured(other, measure))
        ]
        if not common:
            return None
        first, second = (self.estimate(runs, measure, common) for runs in (one, other))
        assert first is not None
        assert second is not None
        values = [self._values(runs, measure, common)[0] for runs in (one, other)]
        assert values[0] is not None
        assert values[1] is not None
        return first, second, tally(values[0], values[1])


def read_scores(recipe: Recipe, contenders: Sequence[Contender], folder: Path) -> Scores:
    """Return the scores that the contenders have left below `folder`, and the oracle's after the
    experts'.
    """
    runs: list[Run] = []
    for contender in contenders:
        for test_set in contender.asked(recipe.comparison.test_sets):
            runs += _runs(contender, test_set, folder / contender.key / test_set)
    if "oracle" in recipe.comparison.models:
        own = {f"LoRA {task.name}": task.name for task in recipe.tasks}
        of_experts = [run for run in runs if own.get(run.label) == run.task]
        runs += [Run(ORACLE, *list(vars(run).values())[1:]) for run in of_experts]
    return Scores(runs, replicates=recipe.comparison.replicates)


def _runs(contender: Contender, test_set: str, folder: Path) -> Iterator[Run]:
    rows = read_csv(folder / SCORES)
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        measures = [
            key for key in of_task[0] if key not in _KEYS and any(row[key] for row in of_task)
        ]
        yield Run(
            contender.label,
            contender.seed,
            test_set,
            task,
            tuple(row["id"] for row in of_task),
            {key: _numbers(row[key] for row in of_task) for key in measures},
            _numbers(row.get("tokens", "") for row in of_task),
            folder / ANSWERS,
        )


def _source(measure: str) -> str:
    """Return the measure of single samples from which a measure follows."""
    return "loss" if measure == "perplexity" else measure


def _numbers(cells: Iterator[str]) -> Array:
    return np.array([float(cell) if cell else np.nan for cell in cells])
