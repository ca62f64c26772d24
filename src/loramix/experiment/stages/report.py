"""Report: the scores, losses, routing weights and samples of a run on one HTML page."""

import json
from collections.abc import Sequence
from typing import Literal

from loramix.data.messages import plain_text
from loramix.data.tasks import Task
from loramix.experiment.labels import BASE, expert_key, label
from loramix.experiment.run import (
    GATE_CHECK,
    MODELS,
    WEIGHTS,
    Run,
    gates_stayed,
    read_losses,
)
from loramix.experiment.stages.evaluate import AnswerRows, read_answers, tables
from loramix.experiment.stages.prepare import COUNTS
from loramix.experiment.summary import sentences
from loramix.metrics.measures import ORIGINS, Better, ScoreFile
from loramix.report.content import RunReport, RunSample, RunTable, WeightRow, mean_weights
from loramix.report.run import run_page
from loramix.storage.card import add_measurements
from loramix.storage.files import read_csv, write_text

_SHOWN = 20  # test samples of every task
_BEST: dict[Better, Literal["max", "min"] | None] = {
    "higher": "max",
    "lower": "min",
    "neither": None,
}
_WORDS = {  # for columns of CSV files
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "three_lines": "three lines",
    "line1_5": "first line: 5 syllables",
    "line2_7": "second: 7",
    "line3_5": "third: 5",
    "poem_575": "5-7-5",
    "mean_syllables": "mean syllables",
}


def run(run: Run) -> None:
    """Write report.html, and the scores and mean weights into the mixture's model card."""
    _describe_mixture(run)
    answers = read_answers(run)
    report = RunReport(
        title=f"loramix: {run.recipe.name}",
        summary=_summary(run),
        tables=[_table(run, table) for table in tables(run.recipe)],
        losses={title: read_losses(file) for title, file in run.loss_files().items()},
        weights=_weights(run),
        samples={task.name: _samples(answers, task) for task in run.recipe.tasks},
        recipe=run.recipe.to_yaml(),
        verses=verses(run.recipe.tasks),
        verdict=tuple(
            sentences(
                run.recipe,
                _losses(run),
                gates_stayed=gates_stayed(run.folder("gate") / GATE_CHECK),
            )
        ),
    )
    write_text(run.root / "report.html", run_page(report))


def verses(tasks: Sequence[Task]) -> frozenset[str]:
    """Return the tasks in whose texts ` / ` stands for a line break."""
    return frozenset(task.name for task in tasks if task.cleaning.whitespace == "lines")


def _describe_mixture(run: Run) -> None:
    """Write the scores and the mean weights into the mixture's model card."""
    scores = {table.title: read_csv(run.root / table.file) for table in tables(run.recipe)}
    weights: list[dict[str, object]] = []
    for task, means in mean_weights(_weights(run)).items():
        row: dict[str, object] = {"task": task}
        for expert, mean in means.items():
            # an expert may be called as the first column is
            column = label(expert_key(expert)) if expert in row else expert
            row[column] = round(float(mean), 4)
        weights.append(row)
    add_measurements(run.folder("gate") / MODELS, run.recipe.to_yaml(), scores, weights)


def _summary(run: Run) -> list[tuple[str, str]]:
    recipe = run.recipe
    environment = json.loads((run.root / "environment.json").read_text())
    facts = [("Base model", recipe.base.name), ("Seed", str(recipe.seed))]
    for name, spec in recipe.experts.items():
        left_out = f", without its {', '.join(spec.lossy)}" if spec.lossy else ""
        commit = f" at {spec.revision}" if spec.revision else ""
        facts.append((f"Given adapter {name}", f"{spec.place}{commit}{left_out}"))
    for row in read_csv(run.folder("prepare") / COUNTS):
        sizes = f"{row['train']} train, {row['validation']} validation, {row['test']} test"
        facts.append((row["task"], sizes))
    if recipe.generation.test_samples:
        facts.append(("Test samples scored", f"{recipe.generation.test_samples} per task"))
    versions = [f"{name} {version}" for name, version in environment["versions"].items()]
    return [*facts, ("Versions", ", ".join(versions))]


def _losses(run: Run) -> dict[str, dict[str, float]]:
    """Return every model's losses on the test samples by task, if the run measures them."""
    tasks = [task.name for task in run.recipe.tasks]
    measured = [table for table in tables(run.recipe) if table.shows == "loss"]
    return {
        row["model"]: {task: float(row[task]) for task in tasks}
        for table in measured
        for row in read_csv(run.root / table.file)
    }


def _table(run: Run, table: ScoreFile) -> RunTable:
    rows = read_csv(run.root / table.file)
    origins = [column for column in rows[0] if column in ORIGINS.values()]
    columns = [column for column in rows[0] if column not in origins]
    measured = ""
    for column in origins:
        name = column.capitalize() if column.islower() else column  # chrF is written so
        measured += f" {name}: {rows[0][column]}."
    cells: list[list[str | float | None]] = []
    for row in rows:
        cells.append([row["model"], *(float(row[column]) for column in columns[1:])])
    headings = [_heading(column) for column in columns]
    return RunTable(table.title, table.note + measured, headings, cells, _BEST[table.better])


def _heading(column: str) -> str:
    """Return a column of a CSV file in words; it may begin with a task's name."""
    task, space, measure = column.rpartition(" ")
    return task + space + _WORDS.get(measure, measure)


def _weights(run: Run) -> list[WeightRow]:
    rows = read_csv(run.folder("gate") / WEIGHTS)
    return [
        WeightRow(row["layer"], row["task"], row["expert"], float(row["weight"])) for row in rows
    ]


def _samples(answers: AnswerRows, task: Task) -> list[RunSample]:
    """Return the first test samples of a task with the answers of every model."""
    shown = []
    for index, row in enumerate(answers[BASE][task.name][:_SHOWN]):
        outputs = {label(model): answers[model][task.name][index]["generated"] for model in answers}
        asked = plain_text(row["input"]) if task.conversational else row["input"]
        shown.append(RunSample(asked, row["reference"], outputs))
    return shown
