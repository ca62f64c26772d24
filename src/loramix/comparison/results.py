"""The results of a comparison as files: scores, paired differences, routing weights and verdict.

    results.csv      recipe, seed, model, task, test_set, measure, value, low, high, n, tokenizer
    differences.csv  recipe, model, against, task, test_set, measure, difference, low, high, above,
                     same, below, n, tokenizer
    routing.csv      model, seed, test_set, task, layer, projection, expert, weight, entropy,
                     concentration
    results.json     the rows of the first two, and the verdict

`seed` is that of the training, or `all` for the mean over several. `task` is `all` for the mean
over the tasks. An empty low and high: no interval (measures of a whole set of answers, which no
single sample has). A positive difference means that `model` has the larger value; `above`, `same`
and `below` count the samples on which it has more, as much, or less. `tokenizer`: what splits texts
for this measure, with its settings; empty for measures that split none.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from loramix.comparison.asking import ROUTING
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.comparison.models import mixture_row
from loramix.comparison.scores import ModelScores, Scores
from loramix.comparison.shares import MEASURE as SHARE
from loramix.comparison.shares import sets_with_shares, shares
from loramix.comparison.statistics import Estimate
from loramix.comparison.verdict import verdict
from loramix.experiment.recipe import Recipe
from loramix.metrics.diversity import distinct
from loramix.metrics.measures import MEASURES, tokenizer
from loramix.storage.files import read_csv, write_csv, write_text

RESULTS, DIFFERENCES, SUMMARY = "results.csv", "differences.csv", "results.json"
FILES = (RESULTS, DIFFERENCES, ROUTING, SUMMARY)
COLUMNS = (
    *("recipe", "seed", "model", "task", "test_set", "measure", "value", "low", "high", "n"),
    "tokenizer",
)
DIFFERENCE_COLUMNS = (
    *("recipe", "model", "against", "task", "test_set", "measure", "difference", "low", "high"),
    *("above", "same", "below", "n", "tokenizer"),
)
ROUTING_COLUMNS = (
    *("model", "seed", "test_set", "task", "layer", "projection", "expert"),
    *("weight", "entropy", "concentration"),
)
ALL = "all"

Row = tuple[object, ...]


def write_results(comparison: Comparison, models: Sequence[ComparedModel], scores: Scores) -> None:
    """Write all files of the results to the comparison's folder."""
    recipe, folder = comparison.recipe, comparison.root
    rows = [(recipe.name, *row, _tokenizer(row)) for row in _rows(scores)]
    differences = [(recipe.name, *row, _tokenizer(row)) for row in _differences(recipe, scores)]
    write_csv(folder / RESULTS, COLUMNS, rows)
    write_csv(folder / DIFFERENCES, DIFFERENCE_COLUMNS, differences)
    write_csv(folder / ROUTING, ROUTING_COLUMNS, _routing_rows(comparison, models))
    content = {
        "verdict": [asdict(claim) for claim in verdict(recipe, scores)],
        "results": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "differences": [dict(zip(DIFFERENCE_COLUMNS, row, strict=True)) for row in differences],
    }
    write_text(folder / SUMMARY, json.dumps(content, indent=1, ensure_ascii=False))


def _tokenizer(row: Row) -> str:
    """Return what splits texts for the measure of a row, the fifth of its cells."""
    return tokenizer(str(row[4]))


def _rows(scores: Scores) -> Iterator[Row]:
    """Yield seed, model, task, test set, measure, value, low, high and n."""
    for row, label in scores.labels.items():
        for test_set, task in scores.asked:
            parts = scores.of(row, test_set, task)
            for part in parts:
                for cells in _measured(scores, [part]):
                    yield part.seed, label, task, test_set, *cells
            if len(parts) > 1:
                for cells in _measured(scores, parts):
                    yield ALL, label, task, test_set, *cells
        for test_set in dict.fromkeys(test_set for test_set, _ in scores.asked):
            tasks = scores.tasks(test_set)
            estimate = scores.over(row, test_set, tasks, "combined")
            if estimate is not None:
                n = scores.count(row, test_set, tasks, "combined")
                yield ALL, label, ALL, test_set, "combined", *_cells(estimate), n
        yield from _share_rows(scores, row, label)


def _share_rows(scores: Scores, row: str, label: str) -> Iterator[Row]:
    """Yield the shares of the right expert's gain, of every task and of all."""
    for test_set in sets_with_shares(scores):
        found = shares(scores, row, test_set)
        if found is not None:
            counts = [scores.count(row, test_set, [task], "loss") for task in found.by_task]
            for (task, share), n in zip(found.by_task.items(), counts, strict=True):
                yield ALL, label, task, test_set, SHARE, *_cells(share), n
            yield ALL, label, ALL, test_set, SHARE, *_cells(found.mean), sum(counts)


def _measured(scores: Scores, parts: Sequence[ModelScores]) -> Iterator[Row]:
    """Yield measure, value, low, high and n, in the order of the measures."""
    for measure in MEASURES.values():
        if measure.group == "set":
            texts = [_texts(part) for part in parts]
            words = int(measure.name.removeprefix("distinct"))
            value = sum(distinct(each, words) for each in texts) / len(texts)
            yield measure.name, round(value, 6), None, None, min(map(len, texts))
        else:
            estimate = scores.estimate(parts, measure.name)
            if estimate is not None:
                n = len(scores.measured(parts, measure.name))
                yield measure.name, *_cells(estimate), n


def _texts(part: ModelScores) -> list[str]:
    return [row["generated"] for row in read_csv(part.answers) if row["task"] == part.task]


def _differences(recipe: Recipe, scores: Scores) -> Iterator[Row]:
    """Yield every mixture against every other model, on every measure that has a better and a
    worse.
    """
    mixtures = [mixture_row(name) for name in recipe.mixtures()]
    for row in mixtures:
        for other in scores.rows:
            if row in scores.labels and other != row:
                for cells in _against(scores, row, other):
                    yield scores.labels[row], scores.labels[other], *cells


def _against(scores: Scores, row: str, other: str) -> Iterator[Row]:
    """Yield task, test set, measure, difference, low, high, above, same, below and n."""
    measures = [each.name for each in MEASURES.values() if each.better != "neither"]
    for test_set, task in scores.asked:
        own, others = scores.of(row, test_set, task), scores.of(other, test_set, task)
        for measure in measures:
            found = scores.paired(own, others, measure)
            if found is not None:
                mean, against, counts = found
                tallied = (counts.above, counts.same, counts.below)
                yield task, test_set, measure, *_cells(mean - against), *tallied, sum(tallied)


def _routing_rows(comparison: Comparison, models: Sequence[ComparedModel]) -> Iterator[Row]:
    for model in models:
        for test_set in comparison.recipe.comparison.test_sets if model.gated else ():
            for row in read_csv(comparison.folder(model, test_set) / ROUTING):
                layer = row["layer"]
                projection = layer.rpartition(".")[2]
                numbers = (row["expert"], row["weight"], row["entropy"], row["concentration"])
                asked = (model.label, model.seed, test_set, row["task"])
                yield *asked, layer, projection, *numbers


def _cells(estimate: Estimate) -> tuple[float, float, float]:
    return round(estimate.value, 6), round(estimate.low, 6), round(estimate.high, 6)
