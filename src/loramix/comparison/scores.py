"""The scores of all models on all questions, aligned so that any two models can be compared sample
by sample.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loramix.comparison.asking import ANSWERS
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.comparison.rescoring import current_scores
from loramix.comparison.statistics import Array, Estimate, Tally, mean, mean_of, tally
from loramix.experiment.labels import ORACLE, expert_key, label
from loramix.experiment.recipe import TestSet

_NO_MEASURES = ("task", "id", "tokens", "tokenizer")  # columns of scores.csv

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model, trained with one seed, on one task of a test set.

    row, label: the key of its row in tables, and that row's name.
    values: a value, or nan, for every sample: measure -> (N,).
    tokens_N: of the references.
    answers: the file with the texts.
    """

    row: str
    label: str
    seed: int
    test_set: str
    task: str
    ids: tuple[str, ...]
    values: dict[str, Array]
    tokens_N: Array
    answers: Path


class Scores:
    """The scores of all models of a comparison; the oracle is every task's own expert."""

    def __init__(self, parts: Sequence[ModelScores], *, replicates: int) -> None:
        self.parts, self.replicates = tuple(parts), replicates
        self.labels = {part.row: part.label for part in parts}
        self._by_key: dict[tuple[str, str, str], list[ModelScores]] = {}
        for part in parts:
            self._by_key.setdefault((part.row, part.test_set, part.task), []).append(part)

    @property
    def rows(self) -> list[str]:
        """The keys of the models' rows, in the order of the tables."""
        return list(self.labels)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The (test set, task) pairs, in order."""
        return list(dict.fromkeys((part.test_set, part.task) for part in self.parts))

    def tasks(self, test_set: str) -> list[str]:
        """Return the tasks that a test set asks for."""
        return [task for each, task in self.asked if each == test_set]

    def of(self, row: str, test_set: str, task: str) -> list[ModelScores]:
        """Return a model's scores, one part for every seed; empty if it was not asked this."""
        return self._by_key.get((row, test_set, task), [])

    def measured(self, parts: Sequence[ModelScores], measure: str) -> list[str]:
        """Return the samples on which all parts have a value."""
        source = _source(measure)
        if not parts or any(source not in part.values for part in parts):
            return []
        known_N = np.all([np.isfinite(part.values[source]) for part in parts], axis=0)
        return [each for each, known in zip(parts[0].ids, known_N, strict=True) if known]

    def count(self, row: str, test_set: str, tasks: Sequence[str], measure: str) -> int:
        """Return the number of samples of these tasks on which a model was measured."""
        parts = [self.of(row, test_set, task) for task in tasks]
        return sum(len(self.measured(each, measure)) for each in parts)

    def estimate(
        self, parts: Sequence[ModelScores], measure: str, ids: Sequence[str] | None = None
    ) -> Estimate | None:
        """Return the mean of a measure over parts that differ in their seed; None where it was not
        measured.

        The perplexity is that of all tokens together. ids: the samples that count; by default all
        on which it was measured.
        """
        if measure == "perplexity":
            loss = self.estimate(parts, "loss", ids)
            return loss and loss.exp()
        values_SN, kept = self._values(parts, measure, ids)
        if values_SN is None:
            return None
        weights_N = parts[0].tokens_N[kept] if measure == "loss" else None
        return mean(values_SN, weights_N, replicates=self.replicates)

    def over(self, row: str, test_set: str, tasks: Sequence[str], measure: str) -> Estimate | None:
        """Return a model's mean of a measure over tasks; None unless it was measured on all of
        them.
        """
        means = [self.estimate(self.of(row, test_set, task), measure) for task in tasks]
        known = [each for each in means if each is not None]
        return mean_of(known) if known and len(known) == len(tasks) else None

    def difference(
        self, row: str, other: str, test_set: str, tasks: Sequence[str], measure: str
    ) -> Estimate | None:
        """Return the paired difference of two models, the mean over tasks; None unless both were
        measured on all.
        """
        gaps = []
        for task in tasks:
            own, against = self.of(row, test_set, task), self.of(other, test_set, task)
            pair = self.paired(own, against, measure)
            if pair is None:
                return None
            gaps.append(pair[0] - pair[1])
        return mean_of(gaps) if gaps else None

    def _values(
        self, parts: Sequence[ModelScores], measure: str, ids: Sequence[str] | None
    ) -> tuple[Array | None, Indices]:
        """Return a measure by seed and sample (S, N), and the indices of these samples."""
        wanted = set(self.measured(parts, measure) if ids is None else ids)
        if not wanted:
            return None, np.array([], dtype=np.intp)
        indices = [index for index, each in enumerate(parts[0].ids) if each in wanted]
        kept = np.array(indices, dtype=np.intp)
        return np.stack([part.values[_source(measure)][kept] for part in parts]), kept

    def paired(
        self, one: Sequence[ModelScores], other: Sequence[ModelScores], measure: str
    ) -> tuple[Estimate, Estimate, Tally] | None:
        """Return the means of two models on the samples that both have been measured on, and a
        tally of these samples; None without any.
        """
        measured = set(self.measured(other, measure))
        common = [each for each in self.measured(one, measure) if each in measured]
        if not common:
            return None
        first, second = (self.estimate(parts, measure, common) for parts in (one, other))
        assert first is not None
        assert second is not None
        values = [self._values(parts, measure, common)[0] for parts in (one, other)]
        assert values[0] is not None
        assert values[1] is not None
        return first, second, tally(values[0], values[1])


def read_scores(comparison: Comparison, models: Sequence[ComparedModel]) -> Scores:
    """Return the scores of the models' answers, and the oracle's after the experts'."""
    recipe = comparison.recipe
    parts: list[ModelScores] = []
    for model in models:
        for test_set in model.asked(recipe.comparison.test_sets):
            folder = comparison.folder(model, test_set)
            rows = current_scores(recipe, test_set, folder)
            parts += _of_model(model, test_set, rows, folder / ANSWERS)
    if {"oracle", "experts"} <= set(recipe.comparison.models):
        own = {task: expert_key(expert) for task, expert in recipe.own_experts.items()}
        experts = [part for part in parts if own.get(part.task) == part.row]
        parts += [replace(part, row=ORACLE, label=label(ORACLE)) for part in experts]
    return Scores(parts, replicates=recipe.comparison.replicates)


def _of_model(
    model: ComparedModel, test_set: TestSet, rows: Sequence[dict[str, str]], answers: Path
) -> Iterator[ModelScores]:
    """Yield a model's scores on every task of a test set."""
    by_task: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    for task, of_task in by_task.items():
        columns = _columns(of_task)
        measured = [key for key in columns if key not in _NO_MEASURES and any(columns[key])]
        yield ModelScores(
            model.row,
            model.label,
            model.seed,
            test_set,
            task,
            ids=tuple(columns["id"]),
            values={key: _numbers(columns[key]) for key in measured},
            tokens_N=_numbers(columns.get("tokens", [""] * len(of_task))),
            answers=answers,
        )


def _columns(rows: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for key in rows[0]:
        columns[key] = [row[key] for row in rows]
    return columns


def _source(measure: str) -> str:
    """Return the measure of single samples behind a measure: perplexity follows from the loss."""
    return "loss" if measure == "perplexity" else measure


def _numbers(cells: Iterable[str]) -> Array:
    return np.array([float(cell) if cell else np.nan for cell in cells])
