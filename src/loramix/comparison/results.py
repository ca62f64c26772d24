"""The results of a comparison as files: scores, paired differences, routing and the verdict.

    results.csv      recipe, seed, model, task, test_set, measure, value, low, high, n
    differences.csv  recipe, model, against, task, test_set, measure, difference, low, high, above,
    same, below, n routing.csv      model, seed, test_set, task, layer, projection, expert, weight,
    entropy, concentration results.json     the rows of the first two, and the verdict

`seed` is that of the training, or `all` for the mean over several. `task` is `all` for the mean
over the tasks. An
empty low and high: no interval (measures of a whole set of answers, which no single sample has). A
positive difference means that `model` has the larger value; `above`, `same` and `below` count the
samples on which it has more, as much, or less.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from loramix.comparison.asking import ROUTING
from loramix.comparison.contenders import Contender
from loramix.comparison.scores import Run, Scores
from loramix.comparison.statistics import Estimate
from loramix.comparison.verdict import verdict
from loramix.experiment.recipe import Recipe
from loramix.metrics.diversity import distinct
from loramix.metrics.measures import MEASURES
from loramix.storage.files import read_csv, write_csv, write_text

COLUMNS = ("recipe", "seed", "model", "task", "test_set", "measure", "value", "low", "high", "n")
DIFFERENCE_COLUMNS = (
    *("recipe", "model", "against", "task", "test_set", "measure", "difference", "low", "high"),
    *("above", "same", "below", "n"),
)
ROUTING_COLUMNS = (
    *("model", "seed", "test_set", "task", "layer", "projection", "expert"),
    *("weight", "entropy", "concentration"),
)
ALL = "all"

Row = tuple[object, ...]


def write_results(
    recipe: Recipe, contenders: Sequence[Contender], scores: Scores, folder: Path
) -> None:
    """Write all files of the results to `folder`."""
    rows = [(recipe.name, *row) for row in _rows(scores)]
    differences = [(recipe.name, *row) for row in _differences(recipe, scores)]
    write_csv(folder / "results.csv", COLUMNS, rows)
    write_csv(folder / "differences.csv", DIFFERENCE_COLUMNS, differences)
    write_csv(folder / "routing.csv", ROUTING_COLUMNS, _routing(recipe, contenders, folder))
    content = {
        "verdict": [asdict(claim) for claim in verdict(recipe, scores)],
        "results": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "differences": [dict(zip(DIFFERENCE_COLUMNS, row, strict=True)) for row in differences],
    }
    write_text(folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False))


def _rows(scores: Scores) -> Iterator[Row]:
    """Yield seed, model, task, test set, measure, value, low, high and n."""
    for label in scores.labels:
        for test_set, task in scores.places:
            runs = scores.of(label, test_set, task)
            for run in runs:
                yield from (
                    (run.seed, label, task, test_set, *cells) for cells in _measured(scores, [run])
                )
            if len(runs) > 1:
                yield from (
                    (ALL, label, task, test_set, *cells) for cells in _measured(scores, runs)
                )
        for test_set in dict.fromkeys(place for place, _ in scores.places):
            tasks = scores.tasks(test_set)
            estimate = scores.over(label, test_set, tasks, "combined")
            if estimate is not None:
                n = sum(
                    len(scores.measured(scores.of(label, test_set, task), "combined"))
                    for task in tasks
                )
                yield ALL, label, ALL, test_set, "combined", *_cells(estimate), n


def _measured(scores: Scores, runs: Sequence[Run]) -> Iterator[Row]:
    """Yield measure, value, low, high and n, in the order of the measures."""
    for measure in MEASURES:
        if measure in ("distinct1", "distinct2"):
            texts = [_texts(run) for run in runs]
            value = sum(distinct(each, int(measure[-1])) for each in texts) / len(texts)
            yield measure, round(value, 6), None, None, min(map(len, texts))
        else:
            estimate = scores.estimate(runs, measure)
            if estimate is not None:
                yield measure, *_cells(estimate), len(scores.measured(runs, measure))


def _texts(run: Run) -> list[str]:
    return [row["generated"] for row in read_csv(run.answers) if row["task"] == run.task]


def _differences(recipe: Recipe, scores: Scores) -> Iterator[Row]:
    """Yield every mixture against every other model, on every measure that has a better and a
    worse.
    """
    measures = [each.name for each in MEASURES.values() if each.better != "neither"]
    for label in recipe.mixtures():
        for other in (other for other in scores.labels if other != label):
            for test_set, task in scores.places:
                for measure in measures:
                    found = scores.paired(
                        scores.of(label, test_set, task), scores.of(other, test_set, task), measure
                    )
                    if found is not None:
                        own, against, counts = found
                        n = counts.above + counts.same + counts.below
                        cells = (*_cells(own - against), counts.above, counts.same, counts.below, n)
                        yield label, other, task, test_set, measure, *cells


def _routing(recipe: Recipe, contenders: Sequence[Contender], folder: Path) -> Iterator[Row]:
    for contender in contenders:
        for test_set in recipe.comparison.test_sets if contender.gated else ():
            for row in read_csv(folder / contender.key / test_set / ROUTING):
                layer = row["layer"]
                numbers = (row["expert"], row["weight"], row["entropy"], row["concentration"])
                place = (contender.label, contender.seed, test_set, row["task"])
                yield *place, layer, layer.rpartition(".")[2], *numbers


def _cells(estimate: Estimate) -> tuple[float, float, float]:
    return round(estimate.value, 6), round(estimate.low, 6), round(estimate.high, 6)
