"""The page of a comparison, from the files that its steps have left."""

from collections.abc import Iterator, Sequence
from typing import Literal

from loramix.comparison.collapse import routing_weights
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.comparison.facts import facts
from loramix.comparison.scores import ModelScores, Scores, read_scores
from loramix.comparison.shares import sets_with_shares, shares
from loramix.comparison.testsets import UNKNOWN
from loramix.comparison.verdict import verdict
from loramix.data.messages import plain_text
from loramix.experiment.labels import BASE, ORACLE, expert_key
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import LOSSES, ROUTING_STEPS, read_losses
from loramix.experiment.stages.report import verses
from loramix.metrics.measures import MEASURES, Group
from loramix.report.comparison import comparison_page
from loramix.report.content import (
    ComparisonReport,
    ComparisonSample,
    Forest,
    LossRow,
    Matrix,
    MeanScore,
    ScoreTable,
    WeightStep,
)
from loramix.storage.files import read_csv, write_text

_SHOWN = 10  # samples of every task and test set
_TEST_SETS = {
    "named": "prompts as trained",
    "bare": "inputs alone, no task named",
    "paraphrased": "prompts in other words",
    "mixed": "one task about another's inputs",
    "crossed": "every task about the others' inputs",
    "unknown": "a task that no expert knows",
}
_SIGNS = {"higher": 1, "lower": -1, "neither": 0}
_IN_WORDS = {"higher": ", higher is better", "lower": ", lower is better", "neither": ""}


def run(comparison: Comparison, models: Sequence[ComparedModel], left_out: Sequence[str]) -> None:
    """Write report.html."""
    recipe, scores = comparison.recipe, read_scores(comparison, models)
    gated, in_lines = _first_seeds(models), verses(recipe.tasks)
    report = ComparisonReport(
        title=f"loramix: comparison of {recipe.name}",
        claims=verdict(recipe, scores),
        facts=facts(comparison, models, scores, left_out),
        tables=[*_tables(scores)],
        forests=[*_forests(scores)],
        matrix=_matrix(comparison, scores),
        routing_weights=routing_weights(comparison, gated),
        weight_steps=dict(_weight_steps(gated)),
        losses=dict(_losses(comparison, models)),
        samples=[*_samples(recipe, scores)],
        recipe=recipe.to_yaml(),
        verses=frozenset(
            task for _, task in scores.asked if task.removesuffix(UNKNOWN) in in_lines
        ),
    )
    write_text(comparison.root / "report.html", comparison_page(report))


def _tables(scores: Scores) -> Iterator[ScoreTable]:
    of_reference = [*_names("reference"), "perplexity"]
    of_form, of_style = _names("form"), _names("style")
    yield _headline(scores)
    yield from _shares(scores)
    for test_set, words in _TEST_SETS.items():
        title = f"{words.capitalize()}: scores"
        yield from _table(scores, title, test_set, [*of_reference, *of_form])
    title = "Length and defects of the answers, prompts as trained"
    yield from _table(scores, title, "named", of_style)


def _names(group: Group) -> list[str]:
    return [measure.name for measure in MEASURES.values() if measure.group == group]


def _headline(scores: Scores) -> ScoreTable:
    """Return the combined score of every model, by test set and task and over all tasks."""
    headings, columns = [], []
    asked = {test_set: scores.tasks(test_set) for test_set in ("named", "bare")}
    for test_set, tasks in asked.items():  # first what sums up: there may be many tasks
        if len(tasks) > 1:
            headings.append(f"{test_set} all tasks")
            columns.append(_column(scores, test_set, tasks, "combined"))
    for test_set, tasks in asked.items():
        for task in tasks:
            headings.append(f"{test_set} {task}")
            columns.append(_column(scores, test_set, [task], "combined"))
    note = (
        f"The {MEASURES['combined'].label}; higher is better. named: prompts as trained; bare: "
        "inputs alone."
    )
    return ScoreTable("Combined score", note, headings, _by_model(scores, columns))


def _shares(scores: Scores) -> Iterator[ScoreTable]:
    """Yield the table of the shares of the right expert's gain: the mean over tasks and the worst
    of them, by test set; nothing without an oracle.
    """
    sets = sets_with_shares(scores)
    found = {row: [shares(scores, row, each) for each in sets] for row in scores.rows}
    rows: list[tuple[str, list[MeanScore | None]]] = []
    for row, of_sets in found.items():
        cells: list[MeanScore | None] = []
        for each in of_sets:
            if each is None:
                cells += [None, None]
                continue
            for share in (each.mean, each.by_task[each.worst]):
                cells.append(MeanScore(share.value, share.low, share.high, ""))
        rows.append((scores.labels[row], cells))
    if sets:
        note = (
            "Share of what the right expert gains over the base, by loss: 0 is the base, 1 the "
            "right expert. Mean over tasks, and the task with the smallest share."
        )
        headings = [f"{each} {kind}" for each in sets for kind in ("mean", "worst task")]
        yield ScoreTable("Share of the right expert's gain", note, headings, rows)


def _table(
    scores: Scores, title: str, test_set: str, measures: Sequence[str]
) -> Iterator[ScoreTable]:
    """Yield the table of these measures on a test set, without columns and rows that are empty;
    nothing if all are.
    """
    headings, columns = [], []
    shown: dict[str, None] = {}
    for task in scores.tasks(test_set):
        for measure in measures:
            column = _column(scores, test_set, [task], measure)
            if any(column):
                headings.append(f"{task} {measure}")
                columns.append(column)
                shown[measure] = None
    if columns:
        explained = [MEASURES[measure] for measure in measures if measure in shown]
        notes = [f"{each.name}: {each.label}{_IN_WORDS[each.better]}" for each in explained]
        rows = [row for row in _by_model(scores, columns) if any(row[1])]
        yield ScoreTable(title, "; ".join(notes), headings, rows)


def _by_model(
    scores: Scores, columns: Sequence[Sequence[MeanScore | None]]
) -> list[tuple[str, list[MeanScore | None]]]:
    """Return the rows of a table from its columns."""
    rows = []
    for index, label in enumerate(scores.labels.values()):
        rows.append((label, [column[index] for column in columns]))
    return rows


def _column(
    scores: Scores, test_set: str, tasks: Sequence[str], measure: str
) -> list[MeanScore | None]:
    """Return every model's mean over tasks, the best marked and those that are not significantly
    worse.

    A model that was measured on fewer samples than others is never the best: its mean is one of
    other samples.
    """
    sign = _SIGNS[MEASURES[measure].better]
    found = {row: scores.over(row, test_set, tasks, measure) for row in scores.rows}
    counts = {row: scores.count(row, test_set, tasks, measure) for row in scores.rows}
    ranked = {
        row: sign * estimate.value
        for row, estimate in found.items()
        if estimate is not None and counts[row] == max(counts.values())
    }
    alike = len(set(ranked.values())) <= 1  # then none is the best
    best = None if alike else max(ranked, key=lambda row: ranked[row])

    def mark(row: str) -> Literal["best", "tied", ""]:
        if best is None:
            return ""
        if ranked.get(row) == ranked[best]:
            return "best"
        gap = scores.difference(best, row, test_set, tasks, measure)
        not_worse = gap is not None and (gap.low <= 0 if sign > 0 else gap.high >= 0)
        return "tied" if not_worse else ""

    return [
        None if each is None else MeanScore(each.value, each.low, each.high, mark(row))
        for row, each in found.items()
    ]


def _forests(scores: Scores) -> Iterator[Forest]:
    for test_set in ("named", "bare", "paraphrased"):
        for task in scores.tasks(test_set):
            cells = _column(scores, test_set, [task], "combined")
            labelled = zip(scores.labels.values(), cells, strict=True)
            rows = [(label, cell) for label, cell in labelled if cell is not None]
            rows.sort(key=lambda row: -row[1].value)
            yield Forest(f"{task}, {_TEST_SETS[test_set]}", "combined score", "higher", rows)


def _matrix(comparison: Comparison, scores: Scores) -> Matrix | None:
    """Return the scores of the base and of every expert on all tasks; None without any."""
    recipe = comparison.recipe
    tasks = [task.name for task in recipe.tasks]
    rows = [row for row in (BASE, *map(expert_key, recipe.expert_names)) if row in scores.rows]
    cells: list[list[float | None]] = []
    measured = False
    for row in rows:
        means = [scores.estimate(scores.of(row, "named", task), "combined") for task in tasks]
        cells.append([None if mean is None else mean.value for mean in means])
        measured = measured or any(means)
    if not measured:
        return None
    note = "Combined score of every expert on its own task and on the others, prompts as trained."
    labels = [scores.labels[row] for row in rows]
    return Matrix("Experts on all tasks", note, labels, tasks, cells)


def _first_seeds(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return every gated mixture of its first seed."""
    first: dict[str, ComparedModel] = {}
    for model in models:
        if model.gated:
            first.setdefault(model.row, model)
    return list(first.values())


def _weight_steps(
    models: Sequence[ComparedModel],
) -> Iterator[tuple[str, list[WeightStep]]]:
    """Yield the mean weights in the course of every mixture's training, by title."""
    for model in models:
        if model.folder is not None:
            steps = []
            for row in read_csv(model.folder / ROUTING_STEPS):
                weight = float(row["weight"])
                steps.append(WeightStep(int(row["step"]), row["task"], row["expert"], weight))
            yield f"{model.label}, seed {model.seed}", steps


def _losses(
    comparison: Comparison, models: Sequence[ComparedModel]
) -> Iterator[tuple[str, list[LossRow]]]:
    """Yield the losses of every training, by title; of mixtures, those of the first seed."""
    for title, file in comparison.run.loss_files().items():
        if file.is_file():
            yield title, read_losses(file)
    for model in [*(each for each in models if not each.gated), *_first_seeds(models)]:
        if model.folder is not None and (model.folder / LOSSES).is_file():
            yield f"{model.label}, seed {model.seed}", read_losses(model.folder / LOSSES)


def _samples(recipe: Recipe, scores: Scores) -> Iterator[ComparisonSample]:
    """Yield the first samples of every test set and task with the answers of every model."""
    chats = {task.name for task in recipe.tasks if task.conversational}
    for test_set, task in scores.asked:
        answers: dict[str, dict[str, dict[str, str]]] = {}  # by label, then sample id
        for row, label in scores.labels.items():
            parts = scores.of(row, test_set, task)
            if parts and row != ORACLE:
                answers[label] = _answers(parts[0])
        for asked in list(next(iter(answers.values())).values())[:_SHOWN]:
            outputs = {
                label: rows[asked["id"]]["generated"]
                for label, rows in answers.items()
                if asked["id"] in rows
            }
            text = plain_text(asked["input"]) if task in chats else asked["input"]
            yield ComparisonSample(test_set, task, text, asked["reference"], outputs)


def _answers(part: ModelScores) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_csv(part.answers) if row["task"] == part.task}
