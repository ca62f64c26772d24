"""Report: one HTML file that shows what the run found."""

import json
from typing import Literal

from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout, read_losses
from loramix.experiment.stages.evaluate import Answers, read_answers
from loramix.report.content import RunReport, RunSample, RunTable, WeightRow, mean_weights
from loramix.report.run import run_page
from loramix.storage.card import add_measurements
from loramix.storage.files import read_csv, write_text

_SHOWN = 20
_NOTES = {
    "rouge": "F1, 0 to 1, mean over the same withheld test samples for every model.",
    "bertscore": "F1, mean over the same withheld test samples; an empty answer scores 0.",
    "accuracy": "Mean over the same withheld test samples. Exact match: share of answers that are "
    "the reference, case, "
    "articles and surrounding punctuation aside. BLEU: of single answers, 0 to 1.",
    "syllables": "Shares of all answers, empty and malformed ones included; 5-7-5 by a "
    "pronouncing dictionary.",
    "test_loss": "Mean loss per target token when a model reads the references of the test "
    "samples; lower is better.",
}
_TITLES = {
    "rouge": "ROUGE",
    "bertscore": "BERTScore",
    "accuracy": "Accuracy",
    "syllables": "Haiku form",
    "test_loss": "Test loss",
}
_BEST: dict[str, Literal["max", "min"]] = {
    "rouge": "max",
    "bertscore": "max",
    "accuracy": "max",
    "test_loss": "min",
}


def run(recipe: Recipe, layout: Layout) -> None:
    """Write report.html, and tell what the run found in the mixture's model card."""
    _describe_mixture(recipe, layout)
    answers = read_answers(recipe, layout)
    report = RunReport(
        title=f"loramix: {recipe.name}",
        summary=_summary(recipe, layout),
        tables=[
            _table(layout, name, note)
            for name, note in _NOTES.items()
            if (layout.root / f"{name}.csv").is_file()
        ],
        losses={label: read_losses(file) for label, file in layout.losses(recipe).items()},
        weights=_weights(layout),
        samples={task.name: _samples(answers, task.name) for task in recipe.tasks},
        recipe=recipe.to_yaml(),
    )
    write_text(layout.root / "report.html", run_page(report))


def _describe_mixture(recipe: Recipe, layout: Layout) -> None:
    tables = {
        _TITLES[name]: read_csv(layout.root / f"{name}.csv")
        for name in _NOTES
        if (layout.root / f"{name}.csv").is_file()
    }
    weights: list[dict[str, object]] = [
        {"task": task, **{expert: round(float(mean), 4) for expert, mean in of_task.items()}}
        for task, of_task in mean_weights(_weights(layout)).items()
    ]
    add_measurements(layout.folder("gate") / "models", recipe.to_yaml(), tables, weights)


def _summary(recipe: Recipe, layout: Layout) -> list[tuple[str, str]]:
    environment = json.loads((layout.root / "environment.json").read_text())
    counts = read_csv(layout.folder("prepare") / "counts.csv")
    facts = [("Base model", recipe.base.name), ("Seed", str(recipe.seed))]
    facts += [
        (row["task"], f"{row['train']} train, {row['validation']} validation, {row['test']} test")
        for row in counts
    ]
    if recipe.generation.test_samples:
        facts.append(("Test samples scored", f"{recipe.generation.test_samples} per task"))
    return [
        *facts,
        (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        ),
    ]


def _table(layout: Layout, name: str, note: str) -> RunTable:
    rows = read_csv(layout.root / f"{name}.csv")
    columns = [column for column in rows[0] if column != "encoder"]
    encoder = f" Encoder: {rows[0]['encoder']}." if "encoder" in rows[0] else ""
    cells: list[list[str | float | None]] = [
        [row["model"], *(float(row[column]) for column in columns[1:])] for row in rows
    ]
    return RunTable(_TITLES[name], note + encoder, columns, cells, _BEST.get(name))


def _weights(layout: Layout) -> list[WeightRow]:
    rows = read_csv(layout.folder("gate") / "weights.csv")
    return [
        WeightRow(row["layer"], row["task"], row["expert"], float(row["weight"])) for row in rows
    ]


def _samples(answers: Answers, task: str) -> list[RunSample]:
    models = [model for model in answers if task in answers[model]]
    return [
        RunSample(
            row["input"],
            row["reference"],
            {model: answers[model][task][index]["generated"] for model in models},
        )
        for index, row in enumerate(answers[models[0]][task][:_SHOWN])
    ]
