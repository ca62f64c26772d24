"""Evaluate: every model's scores in the metrics of every task, and the form of the haikus."""

from collections.abc import Sequence

from loramix.bases.loading import encoder_path
from loramix.errors import StageError
from loramix.experiment.labels import BASE, label
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import TEST_LOSS, Run
from loramix.metrics.bertscore import BertScorer, bert_scorer
from loramix.metrics.haiku import syllable_table
from loramix.metrics.measures import (
    ORIGINS,
    SCORE_FILES,
    Measure,
    ScoreFile,
    Values,
    reference_scores,
    tokenizer,
)
from loramix.storage.files import read_csv, write_csv

AnswerRows = dict[str, dict[str, list[dict[str, str]]]]  # of the answer files: by model, then task
AnswerValues = dict[tuple[str, str], Values]  # by model and task


def tables(recipe: Recipe) -> list[ScoreFile]:
    """Return the tables that this recipe's metrics ask for."""
    wanted: set[str] = set()
    for task in recipe.tasks:
        wanted.update(task.metrics)
    return [table for table in SCORE_FILES if table.metrics & wanted]


def run(run: Run) -> None:
    """Write the tables of scores, one row per model.

    These are rouge.csv, bertscore.csv, accuracy.csv, syllables.csv and test_loss.csv. Empty and
    malformed answers count.
    """
    answers = read_answers(run)
    scorer = None
    if any("bertscore" in task.metrics for task in run.recipe.tasks):
        scorer = bert_scorer(encoder_path(run.recipe.evaluation.encoder))
    values = _values(run, answers, scorer)
    for table in tables(run.recipe):
        if table.shows == "form":
            _syllables(run, table, answers)
        elif table.shows == "loss":
            _test_loss(run, table)
        else:
            _means(run, table, list(answers), values, scorer)


def read_answers(run: Run) -> AnswerRows:
    """Return all answers; checks that every model answered the same samples."""
    answers: AnswerRows = {}
    for model, folders in run.answer_folders().items():
        answers[model] = {task: read_csv(folders[task] / f"{task}.csv") for task in folders}
    for model, of_model in answers.items():
        for task, rows in of_model.items():
            expected = [row["reference"] for row in answers[BASE][task]]
            if [row["reference"] for row in rows] != expected:
                raise StageError(
                    f"{label(model)} answered other samples of {task} than the base model; delete "
                    "its folder and run again"
                )
    return answers


def _values(run: Run, answers: AnswerRows, scorer: BertScorer | None) -> AnswerValues:
    """Return every score against references, by model and task."""
    values: AnswerValues = {}
    for model in track(list(answers), "scores"):
        for task in run.recipe.tasks:
            texts = _texts(answers[model][task.name])
            values[model, task.name] = reference_scores(task, *texts, scorer)
    return values


def _means(
    run: Run,
    table: ScoreFile,
    models: Sequence[str],
    values: AnswerValues,
    scorer: BertScorer | None,
) -> None:
    """Write a table of mean scores: one column for every task and measure that it asks for."""
    columns: list[tuple[str, Measure]] = []
    for task in run.recipe.tasks:
        asked_for = [measure for measure in table.measures if measure.metric in task.metrics]
        columns += [(task.name, measure) for measure in asked_for]
    header = ["model", *(f"{task} {measure.column}" for task, measure in columns)]
    origins = _origins([measure for _, measure in columns], scorer)
    rows: list[list[object]] = []
    for model in models:
        means = [_mean(values[model, task][measure.name]) for task, measure in columns]
        rows.append([label(model), *means, *origins.values()])
    write_csv(run.root / table.file, [*header, *origins], rows)


def _origins(measures: Sequence[Measure], scorer: BertScorer | None) -> dict[str, str]:
    """Return what measured these measures, in words, by its column of the table."""
    origins = {}
    for measure in measures:
        if measure.name == "bertscore" and scorer is not None:
            origins[ORIGINS["bertscore"]] = scorer.identity
        elif measure.name in ORIGINS:
            origins[ORIGINS[measure.name]] = tokenizer(measure.name)
    return origins


def _syllables(run: Run, table: ScoreFile, answers: AnswerRows) -> None:
    """Write the form of the haikus of every model, and that of the references."""
    tasks = [task.name for task in run.recipe.tasks if "haiku" in task.metrics]
    texts = {label(model): of_model for model, of_model in answers.items()}
    rows: list[list[object]] = []
    columns: list[str] = []
    for model in [*texts, "reference"]:
        row: list[object] = [model]
        columns = []  # the same for every row
        for task in tasks:
            generated, _ = _texts(texts[model][task]) if model in texts else ([], [])
            _, references = _texts(answers[BASE][task])
            form = syllable_table(generated if model in texts else references)
            row += [round(value, 4) for value in form.values()]
            columns += [name if len(tasks) == 1 else f"{task} {name}" for name in form]
        rows.append(row)
    write_csv(run.root / table.file, ["model", *columns], rows)


def _test_loss(run: Run, table: ScoreFile) -> None:
    """Write the losses that every model has on the references."""
    tasks = [task.name for task in run.recipe.tasks]
    rows = []
    for model, folders in run.answer_folders().items():
        losses: dict[str, float] = {}
        for folder in set(folders.values()):  # most models keep all tasks in one folder
            losses |= {row["task"]: float(row["loss"]) for row in read_csv(folder / TEST_LOSS)}
        rows.append([label(model), *(round(losses[task], 4) for task in tasks)])
    write_csv(run.root / table.file, ["model", *tasks], rows)


def _texts(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    """Return the generated texts and the references."""
    return [row["generated"] for row in rows], [row["reference"] for row in rows]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
