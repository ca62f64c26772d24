"""The page of a comparison, from the files that its steps have left."""

from collections.abc import Iterator, Sequence
from typing import Literal

from loramix.comparison.collapse import routings
from loramix.comparison.contenders import Contender, Place
from loramix.comparison.scores import ORACLE, Run, Scores, read_scores
from loramix.comparison.verdict import verdict
from loramix.experiment.run import ROUTING_STEPS, read_losses
from loramix.metrics.measures import MEASURES
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
    "unknown": "a task that no expert knows",
}
_OF_REFERENCE = ("rouge1", "rouge2", "rougeL", "bertscore", "perplexity", "exact_match", "bleu")
_OF_FORM = ("poem_575", "lines_right", "three_lines", "keyword_use")
_OF_TEXT = ("words", "repetition", "empty", "cut", "malformed")


def run(place: Place, models: Sequence[Contender], left_out: Sequence[str]) -> None:
    """Write report.html."""
    scores = read_scores(place.recipe, models, place.root)
    report = ComparisonReport(
        title=f"loramix: {place.recipe.name}",
        claims=verdict(place.recipe, scores),
        facts=_facts(place, models, scores, left_out),
        tables=[*_tables(scores)],
        forests=[*_forests(scores)],
        matrix=_matrix(place, scores),
        routing_weights=routings(place, models),
        weight_steps=dict(_steps(models)),
        losses=dict(_losses(place, models)),
        samples=[*_samples(scores)],
        recipe=place.recipe.to_yaml(),
    )
    write_text(place.root / "report.html", comparison_page(report))


def _facts(
    place: Place, models: Sequence[Contender], scores: Scores, left_out: Sequence[str]
) -> list[tuple[str, str]]:
    recipe = place.recipe
    most: dict[tuple[str, str], int] = {}
    for run in scores.runs:
        asked = run.test_set, run.task
        most[asked] = max(most.get(asked, 0), len(run.ids))
    sizes = [f"{test_set} {task}: {most[test_set, task]}" for test_set, task in scores.places]
    facts = [
        ("Base model", f"{recipe.base.name}, {recipe.base.dtype}"),
        ("Test samples", ", ".join(sizes)),
    ]
    facts.append(("Seeds of the gates", ", ".join(map(str, recipe.comparison.seeds))))
    slow, first = (
        [model.label for model in models if not model.cached],
        recipe.comparison.uncached_samples,
    )
    if slow and first is not None:
        reason = "which generates without a cache, answered the first"
        facts.append(
            (
                "Fewer samples",
                f"{', '.join(slow)}, {reason} {first} of the first set; differences are paired on "
                "those",
            )
        )
    return [*facts, *(("Left out", reason) for reason in left_out)]


def _tables(scores: Scores) -> Iterator[ScoreTable]:
    yield _headline(scores)
    for test_set, what in _TEST_SETS.items():
        yield from _table(
            scores, f"{what.capitalize()}: scores", test_set, (*_OF_REFERENCE, *_OF_FORM)
        )
    yield from _table(scores, "What the answers are like, prompts as trained", "named", _OF_TEXT)


def _headline(scores: Scores) -> ScoreTable:
    columns: list[tuple[str, list[str]]] = []
    for test_set in ("named", "bare"):
        tasks = scores.tasks(test_set)
        columns += [(test_set, [task]) for task in tasks] + (
            [(test_set, tasks)] if len(tasks) > 1 else []
        )
    cells = [_column(scores, test_set, part, "combined") for test_set, part in columns]
    return ScoreTable(
        "Combined score",
        "The mean of the scores against the reference that a task has (ROUGE-L, BERTScore, exact "
        "match, BLEU) and of "
        "the probability of the reference's tokens; higher is better. named: prompts as trained; "
        "bare: inputs alone.",
        [f"{test_set} {part[0] if len(part) == 1 else 'all tasks'}" for test_set, part in columns],
        [(label, [column[row] for column in cells]) for row, label in enumerate(scores.labels)],
    )


def _table(
    scores: Scores, title: str, test_set: str, measures: Sequence[str]
) -> Iterator[ScoreTable]:
    columns = [(task, measure) for task in scores.tasks(test_set) for measure in measures]
    filled = {
        column: cells
        for column in columns
        if any(cells := _column(scores, test_set, [column[0]], column[1]))
    }
    if filled:
        shown = [
            MEASURES[measure] for measure in measures if any(measure == each for _, each in filled)
        ]
        ways = {"higher": ", higher is better", "lower": ", lower is better", "neither": ""}
        rows = [
            (label, [cells[row] for cells in filled.values()])
            for row, label in enumerate(scores.labels)
        ]
        yield ScoreTable(
            title,
            "; ".join(f"{each.name}: {each.label}{ways[each.better]}" for each in shown),
            [f"{task} {measure}" for task, measure in filled],
            [row for row in rows if any(row[1])],
        )


def _column(
    scores: Scores, test_set: str, tasks: Sequence[str], measure: str
) -> list[MeanScore | None]:
    """Return every model's mean over tasks, the best marked and those that are not significantly
    worse.

    A model that was measured on fewer samples than others is never the best: its mean is one of
    other samples.
    """
    found = {label: scores.over(label, test_set, tasks, measure) for label in scores.labels}
    sign = {"higher": 1, "lower": -1, "neither": 0}[MEASURES[measure].better]
    counts = {
        label: sum(len(scores.measured(scores.of(label, test_set, t), measure)) for t in tasks)
        for label in found
    }
    ranked = {
        label: sign * estimate.value
        for label, estimate in found.items()
        if estimate is not None and counts[label] == max(counts.values())
    }
    best = max(ranked, key=lambda label: ranked[label]) if len(set(ranked.values())) > 1 else None

    def mark(label: str) -> Literal["best", "tied", ""]:
        if best is None or ranked.get(label) == ranked[best]:
            return "best" if best is not None else ""
        gap = scores.difference(best, label, test_set, tasks, measure)
        return "tied" if gap is not None and (gap.low <= 0 if sign > 0 else gap.high >= 0) else ""

    return [
        None if each is None else MeanScore(each.value, each.low, each.high, mark(label))
        for label, each in found.items()
    ]


def _forests(scores: Scores) -> Iterator[Forest]:
    for test_set in ("named", "bare", "paraphrased"):
        for task in scores.tasks(test_set):
            cells = _column(scores, test_set, [task], "combined")
            rows = [
                (label, cell)
                for label, cell in zip(scores.labels, cells, strict=True)
                if cell is not None
            ]
            rows.sort(key=lambda row: -row[1].value)
            yield Forest(f"{task}, {_TEST_SETS[test_set]}", "combined score", "higher", rows)


def _matrix(place: Place, scores: Scores) -> Matrix | None:
    tasks = [task.name for task in place.recipe.tasks]
    rows = [
        label for label in ("base", *(f"LoRA {task}" for task in tasks)) if label in scores.labels
    ]
    estimates = [
        [scores.estimate(scores.of(label, "named", task), "combined") for task in tasks]
        for label in rows
    ]
    if not any(map(any, estimates)):
        return None
    cells = [[None if each is None else each.value for each in row] for row in estimates]
    note = "Combined score of every expert on its own task and on the others, prompts as trained."
    return Matrix("Experts on all tasks", note, rows, tasks, cells)


def _first_seed(models: Sequence[Contender]) -> list[Contender]:
    first = {model.label: model for model in reversed(models) if model.gated}
    return list(reversed(first.values()))


def _steps(models: Sequence[Contender]) -> Iterator[tuple[str, list[WeightStep]]]:
    for model in _first_seed(models):
        if model.folder is not None:
            rows = read_csv(model.folder / ROUTING_STEPS)
            steps = [
                WeightStep(int(r["step"]), r["task"], r["expert"], float(r["weight"])) for r in rows
            ]
            yield f"{model.label}, seed {model.seed}", steps


def _losses(place: Place, models: Sequence[Contender]) -> Iterator[tuple[str, list[LossRow]]]:
    for label, file in place.layout.losses(place.recipe).items():
        if file.is_file():
            yield label, read_losses(file)
    for model in [*(each for each in models if not each.gated), *_first_seed(models)]:
        if model.folder is not None and (model.folder / "losses.csv").is_file():
            yield f"{model.label}, seed {model.seed}", read_losses(model.folder / "losses.csv")


def _samples(scores: Scores) -> Iterator[ComparisonSample]:
    for test_set, task in scores.places:
        runs = [
            scores.of(label, test_set, task)[0]
            for label in scores.labels
            if scores.of(label, test_set, task)
        ]
        answers = {run.label: _answers(run) for run in runs if run.label != ORACLE}
        for row in list(next(iter(answers.values())).values())[:_SHOWN]:
            outputs = {
                label: of[row["id"]]["generated"]
                for label, of in answers.items()
                if row["id"] in of
            }
            yield ComparisonSample(test_set, task, row["input"], row["reference"], outputs)


def _answers(run: Run) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_csv(run.answers) if row["task"] == run.task}
