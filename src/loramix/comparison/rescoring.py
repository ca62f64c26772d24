"""The scores of a model's answers, measured as today: those of earlier versions are measured anew
from the answers, so that no table mixes two tokenizers.
"""

from collections.abc import Sequence
from pathlib import Path

from loramix.comparison.asking import ANSWERS, SCORES, combined
from loramix.comparison.testsets import Question, asked_task
from loramix.data.tasks import Task
from loramix.experiment.recipe import Recipe, TestSet
from loramix.metrics.measures import Values, answer_scores
from loramix.metrics.words import TOKENIZER
from loramix.storage.files import read_csv

Rows = Sequence[dict[str, str]]


def current_scores(recipe: Recipe, test_set: TestSet, folder: Path) -> list[dict[str, str]]:
    """Return the rows of scores.csv; the file stays as it is.

    BERTScore and the losses do not depend on the tokenizer, and are those of the file.
    """
    rows = read_csv(folder / SCORES)
    if all(row.get("tokenizer") == TOKENIZER for row in rows):
        return rows
    scored = {(row["task"], row["id"]): row for row in rows}
    answers = read_csv(folder / ANSWERS)
    for name in dict.fromkeys(row["task"] for row in answers):
        task = asked_task(recipe, Question(test_set, name, "", "", "", ""))
        of_task = [row for row in answers if row["task"] == name]
        values = _values(task, of_task)
        for index, answer in enumerate(of_task):
            _update(scored[name, answer["id"]], {key: values[key][index] for key in values})
    return [{**row, "tokenizer": TOKENIZER} for row in rows]


def _values(task: Task, answers: Rows) -> Values:
    """Return all scores but BERTScore of the answers to one task."""
    metrics = tuple(metric for metric in task.metrics if metric != "bertscore")
    return answer_scores(
        task.model_copy(update={"metrics": metrics}),
        [row["input"] for row in answers],
        [row["generated"] for row in answers],
        [row["reference"] for row in answers] if answers[0]["reference"] else None,
        bertscore=None,
        finished=[row["finished"] == "1" for row in answers],
    )


def _update(row: dict[str, str], values: dict[str, float]) -> None:
    """Put the new scores in the place of the old ones, and their mean."""
    row |= {name: str(round(value, 6)) for name, value in values.items() if row.get(name)}
    if row.get("combined"):
        row["combined"] = str(combined(row))
