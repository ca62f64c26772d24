"""Evaluate: ROUGE and BERTScore of every model on every task, and the form of the haikus."""

from collections.abc import Sequence

from loramix.bases import encoder_path
from loramix.errors import StageError
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.haiku import syllable_table
from loramix.metrics.rouge import rouge
from loramix.recipe import Recipe
from loramix.stages.layout import Layout, read_csv, write_csv
from loramix.stages.progress import track

Answers = dict[str, dict[str, list[dict[str, str]]]]  # by model, then task


def run(recipe: Recipe, layout: Layout) -> None:
    """Write rouge.csv, bertscore.csv and syllables.csv, one row per model; empty and malformed answers count."""
    answers = read_answers(recipe, layout)
    _rouge(recipe, layout, answers)
    _bertscore(recipe, layout, answers)
    _syllables(recipe, layout, answers)


def read_answers(recipe: Recipe, layout: Layout) -> Answers:
    """Return all answers; checks that every model answered the same samples."""
    files = layout.answers(recipe)
    answers = {model: {task: read_csv(path) for task, path in of.items()} for model, of in files.items()}
    for model, of in answers.items():
        for task, rows in of.items():
            expected = [row["reference"] for row in answers["base"][task]]
            if [row["reference"] for row in rows] != expected:
                raise StageError(
                    f"{model} answered other samples of {task} than the base model; delete its folder and run again"
                )
    return answers


def _rouge(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    names = ("rouge1", "rouge2", "rougeL")
    tasks = [task.name for task in recipe.tasks if "rouge" in task.metrics]
    rows = []
    for model in track(list(answers), "ROUGE"):
        scores = {task: rouge(*_texts(answers[model][task])) for task in tasks}
        rows.append([model, *(_mean(scores[task][name]) for task in tasks for name in names)])
    write_csv(layout.root / "rouge.csv", ["model", *(f"{task} {name}" for task in tasks for name in names)], rows)


def _bertscore(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    tasks = [task.name for task in recipe.tasks if "bertscore" in task.metrics]
    scorer = BertScorer(encoder_path(recipe.evaluation.encoder))
    rows = []
    for model in track(list(answers), "BERTScore"):
        means = [_mean(scorer.score(*_texts(answers[model][task]))) for task in tasks]
        rows.append([model, *means, scorer.identity])
    write_csv(layout.root / "bertscore.csv", ["model", *(f"{task} F1" for task in tasks), "encoder"], rows)


def _syllables(recipe: Recipe, layout: Layout, answers: Answers) -> None:
    for task in recipe.tasks:
        if "haiku" not in task.metrics:
            continue
        poems = {model: _texts(of[task.name])[0] for model, of in answers.items()}
        poems["reference"] = [row["reference"] for row in answers["base"][task.name]]
        tables = {model: syllable_table(texts) for model, texts in poems.items()}
        columns = list(tables["reference"])
        rows = [[model, *(round(table[column], 4) for column in columns)] for model, table in tables.items()]
        write_csv(layout.root / "syllables.csv", ["model", *columns], rows)


def _texts(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [row["generated"] for row in rows], [row["reference"] for row in rows]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
