"""Evaluate: the scores of every model on every task that its tasks ask for, and the form of the
haikus.
"""

from collections.abc import Callable, Sequence

from loramix.bases.loading import encoder_path
from loramix.data.tasks import Metric
from loramix.errors import StageError
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import TEST_LOSS, Layout
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.haiku import syllable_table
from loramix.metrics.matching import bleu, exact_match
from loramix.metrics.rouge import rouge
from loramix.storage.files import read_csv, write_csv

Answers = dict[str, dict[str, list[dict[str, str]]]]  # by model, then task


def tables(recipe: Recipe) -> dict[str, Callable[[Recipe, Layout, Answers], None]]:
    """Return the tables that this recipe's metrics ask for, by file name, and what writes them."""
    wanted: set[str] = {metric for task in recipe.tasks for metric in task.metrics}
    written: dict[str, tuple[Callable[[Recipe, Layout, Answers], None], set[str]]] = {
        "rouge": (_rouge, {"rouge"}),
        "bertscore": (_bertscore, {"bertscore"}),
        "accuracy": (_accuracy, {"exact-match", "bleu"}),
        "syllables": (_syllables, {"haiku"}),
        "test_loss": (_test_loss, wanted),
    }
    return {name: write for name, (write, metrics) in written.items() if metrics & wanted}


def run(recipe: Recipe, layout: Layout) -> None:
    """Write rouge.csv, bertscore.csv, accuracy.csv, syllables.csv and test_loss.csv, one row per
    model.

    Empty and malformed answers count.
    """
    answers = read_answers(recipe, layout)
    for write in tables(recipe).values():
        write(recipe, layout, answers)


def read_answers(recipe: Recipe, layout: Layout) -> Answers:
    """Return all answers; checks that every model answered the same samples."""
    folders = layout.models(recipe)
    answers = {
        model: {task: read_csv(folder / f"{task}.csv") for task, folder in of.items()}
        for model, of in folders.items()
    }
    for model, of in answers.items():
        for task, rows in of.items():
            expected = [row["reference"] for row in answers["base"][task]]
            if [row["reference"] for row in rows] != expected:
                raise StageError(
                    f"{model} answered other samples of {task} than the base model; delete its "
                    "folder and run again"
                )
    return answers


def _test_loss(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    tasks = [task.name for task in recipe.tasks]
    rows = []
    for model, folders in layout.models(recipe).items():
        losses = {
            row["task"]: row["loss"]
            for folder in set(folders.values())
            for row in read_csv(folder / TEST_LOSS)
        }
        rows.append([model, *(round(float(losses[task]), 4) for task in tasks)])
    write_csv(layout.root / "test_loss.csv", ["model", *tasks], rows)


def _rouge(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    names = ("rouge1", "rouge2", "rougeL")
    tasks = [task.name for task in recipe.tasks if "rouge" in task.metrics]
    rows = []
    for model in track(list(answers), "ROUGE"):
        scores = {task: rouge(*_texts(answers[model][task])) for task in tasks}
        rows.append([model, *(_mean(scores[task][name]) for task in tasks for name in names)])
    write_csv(
        layout.root / "rouge.csv",
        ["model", *(f"{task} {name}" for task in tasks for name in names)],
        rows,
    )


def _bertscore(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    tasks = [task.name for task in recipe.tasks if "bertscore" in task.metrics]
    scorer = BertScorer(encoder_path(recipe.evaluation.encoder))
    rows = []
    for model in track(list(answers), "BERTScore"):
        means = [_mean(scorer.score(*_texts(answers[model][task]))) for task in tasks]
        rows.append([model, *means, scorer.identity])
    write_csv(
        layout.root / "bertscore.csv", ["model", *(f"{task} F1" for task in tasks), "encoder"], rows
    )


def _accuracy(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    scored: list[tuple[str, Metric, Callable[[Sequence[str], Sequence[str]], list[float]]]] = [
        ("exact match", "exact-match", exact_match),
        ("BLEU", "bleu", bleu),
    ]
    columns = [
        (t.name, name, score)
        for t in recipe.tasks
        for name, metric, score in scored
        if metric in t.metrics
    ]
    rows = [
        [model, *(_mean(score(*_texts(answers[model][task]))) for task, _, score in columns)]
        for model in track(list(answers), "accuracy")
    ]
    write_csv(
        layout.root / "accuracy.csv",
        ["model", *(f"{task} {name}" for task, name, _ in columns)],
        rows,
    )


def _syllables(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    tasks = [task.name for task in recipe.tasks if "haiku" in task.metrics]
    rows, columns = [], []
    for model in [*answers, "reference"]:
        row: list[object] = [model]
        for task in tasks:
            texts = [each["reference"] for each in answers["base"][task]]
            table = syllable_table(
                texts if model == "reference" else _texts(answers[model][task])[0]
            )
            row += [round(value, 4) for value in table.values()]
            if model == "reference":
                columns += [column if len(tasks) == 1 else f"{task} {column}" for column in table]
        rows.append(row)
    write_csv(layout.root / "syllables.csv", ["model", *columns], rows)


def _texts(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [row["generated"] for row in rows], [row["reference"] for row in rows]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
