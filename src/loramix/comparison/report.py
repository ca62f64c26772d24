"""The page of a comparison, from the files that its steps have left."""

from collections.abc import Iterator, Sequence

from loramix.atomic import write_text
from loramix.comparison.contenders import Contender, Place
from loramix.comparison.results import over_tasks
from loramix.comparison.routing import routings
from loramix.comparison.scores import ORACLE, Run, Scores, read_scores
from loramix.comparison.statistics import Estimate
from loramix.comparison.verdict import difference, verdict
from loramix.metrics.scores import MEASURES
from loramix.report.comparison import render_comparison
from loramix.report.comparison_content import (
    ComparisonReport,
    ComparisonSample,
    Forest,
    Matrix,
    RoutingStep,
    Score,
    ScoreTable,
)
from loramix.report.content import LossRow
from loramix.stages.layout import ROUTING_STEPS, read_csv, read_losses

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
        facts=_facts(place, scores, left_out),
        tables=[*_tables(scores)],
        forests=[*_forests(scores)],
        matrix=_matrix(place, scores),
        routing=routings(place, models),
        steps=dict(_steps(models)),
        losses=dict(_losses(place, models)),
        samples=[*_samples(scores)],
        recipe=place.recipe.to_yaml(),
    )
    write_text(place.root / "report.html", render_comparison(report))


def _facts(place: Place, scores: Scores, left_out: Sequence[str]) -> list[tuple[str, str]]:
    recipe = place.recipe
    sizes = [
        f"{test_set} {task}: {max(len(run.ids) for run in scores.runs if (run.test_set, run.task) == (test_set, task))}"
        for test_set, task in scores.places
    ]
    facts = [("Base model", f"{recipe.base.name}, {recipe.base.dtype}"), ("Test samples", ", ".join(sizes))]
    facts.append(("Seeds of the gates", ", ".join(map(str, recipe.comparison.seeds))))
    return [*facts, *(("Left out", reason) for reason in left_out)]


def _tables(scores: Scores) -> Iterator[ScoreTable]:
    yield _headline(scores)
    for test_set, what in _TEST_SETS.items():
        places = [place for place in scores.places if place[0] == test_set]
        columns = [(place, measure) for place in places for measure in (*_OF_REFERENCE, *_OF_FORM)]
        yield from _table(scores, f"{what.capitalize()}: scores", columns)
    columns = [(place, measure) for place in scores.places if place[0] == "named" for measure in _OF_TEXT]
    yield from _table(scores, "What the answers are like, prompts as trained", columns)


def _headline(scores: Scores) -> ScoreTable:
    tasks = {test_set: [t for s, t in scores.places if s == test_set] for test_set in ("named", "bare")}
    columns = [(test_set, part) for test_set, of in tasks.items() if of for part in ([t] for t in of)]
    columns += [(test_set, of) for test_set, of in tasks.items() if len(of) > 1]
    columns.sort(key=lambda column: list(tasks).index(column[0]))
    cells = []
    for test_set, part in columns:
        of = {label: _over(scores, label, test_set, part) for label in scores.labels}
        best = max((label for label in of if of[label]), key=lambda label: of[label].value, default="")  # type: ignore[union-attr]
        cells.append([_headline_score(scores, label, best, test_set, part, of[label]) for label in scores.labels])
    return ScoreTable(
        "Combined score",
        "The mean of the scores against the reference that a task has (ROUGE-L, BERTScore, exact match, BLEU) and of "
        "the probability of the reference's tokens; higher is better.",
        ["model", *(f"{_TEST_SETS[s]}: {', '.join(part) if len(part) == 1 else 'all tasks'}" for s, part in columns)],
        [(label, [column[row] for column in cells]) for row, label in enumerate(scores.labels)],
    )


def _over(scores: Scores, label: str, test_set: str, tasks: Sequence[str]) -> Estimate | None:
    if len(tasks) > 1:
        return over_tasks(scores, label, test_set, "combined")
    return scores.estimate(scores.of(label, test_set, tasks[0]), "combined")


def _headline_score(
    scores: Scores, label: str, best: str, test_set: str, tasks: Sequence[str], found: Estimate | None
) -> Score | None:
    if found is None:
        return None
    behind = difference(scores, best, label, test_set, tasks) if label != best else None
    tied = behind is not None and behind.low <= 0
    return Score(found.value, found.low, found.high, "best" if label == best else "tied" if tied else "")


def _table(scores: Scores, title: str, columns: Sequence[tuple[tuple[str, str], str]]) -> Iterator[ScoreTable]:
    filled = []
    for (test_set, task), measure in columns:
        cells = [_score(scores, label, test_set, task, measure) for label in scores.labels]
        if any(cells):
            filled.append((f"{task} {measure}", _marked(scores, cells, test_set, task, measure)))
    if filled:
        directions = {name.rpartition(" ")[2]: MEASURES[name.rpartition(" ")[2]] for name, _ in filled}
        note = "; ".join(
            f"{name}: {each.label}{'' if each.better == 'neither' else f', {each.better} is better'}"
            for name, each in directions.items()
        )
        rows = [
            (label, [cells[row] for _, cells in filled])
            for row, label in enumerate(scores.labels)
            if any(cells[row] for _, cells in filled)
        ]
        yield ScoreTable(title, note, ["model", *(name for name, _ in filled)], rows)


def _score(scores: Scores, label: str, test_set: str, task: str, measure: str) -> Score | None:
    estimate = scores.estimate_of(label, test_set, task, measure)
    return None if estimate is None else Score(estimate.value, estimate.low, estimate.high, "")


def _marked(
    scores: Scores, cells: Sequence[Score | None], test_set: str, task: str, measure: str
) -> list[Score | None]:
    """Mark the best score of a column and those that are not significantly worse."""
    better = MEASURES[measure].better
    known = {label: cell for label, cell in zip(scores.labels, cells, strict=True) if cell is not None}
    if better == "neither" or len({cell.value for cell in known.values()}) < 2:
        return list(cells)
    sign = 1 if better == "higher" else -1
    best = max(known, key=lambda label: sign * known[label].value)
    source = "loss" if measure == "perplexity" else measure
    marked: list[Score | None] = []
    for label, cell in zip(scores.labels, cells, strict=True):
        if cell is None:
            marked.append(None)
            continue
        pair = scores.paired(scores.of(best, test_set, task), scores.of(label, test_set, task), source)
        gap = pair[0] - pair[1] if pair else None
        tied = gap is not None and (gap.low <= 0 if sign > 0 else gap.high >= 0)
        mark = "best" if cell.value == known[best].value else "tied" if tied else ""
        marked.append(Score(cell.value, cell.low, cell.high, mark))  # type: ignore[arg-type]
    return marked


def _forests(scores: Scores) -> Iterator[Forest]:
    for test_set in ("named", "bare", "paraphrased"):
        for task in [task for s, task in scores.places if s == test_set]:
            rows = []
            for label in scores.labels:
                score = _score(scores, label, test_set, task, "combined")
                if score is not None:
                    rows.append((label, score))
            rows.sort(key=lambda row: -row[1].value)
            yield Forest(f"{task}, {_TEST_SETS[test_set]}", "combined score", "higher", rows)


def _matrix(place: Place, scores: Scores) -> Matrix | None:
    tasks = [task.name for task in place.recipe.tasks]
    rows = [label for label in ("base", *(f"LoRA {task}" for task in tasks)) if label in scores.labels]
    estimates = [[scores.estimate(scores.of(label, "named", task), "combined") for task in tasks] for label in rows]
    if not any(map(any, estimates)):
        return None
    cells = [[None if each is None else each.value for each in row] for row in estimates]
    note = "Combined score of every expert on its own task and on the others, prompts as trained."
    return Matrix("Experts on all tasks", note, rows, tasks, cells)


def _first_seed(models: Sequence[Contender]) -> list[Contender]:
    first = {model.label: model for model in reversed(models) if model.gated}
    return list(reversed(first.values()))


def _steps(models: Sequence[Contender]) -> Iterator[tuple[str, list[RoutingStep]]]:
    for model in _first_seed(models):
        if model.folder is not None:
            rows = read_csv(model.folder / ROUTING_STEPS)
            steps = [RoutingStep(int(r["step"]), r["task"], r["expert"], float(r["weight"])) for r in rows]
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
        runs = [scores.of(label, test_set, task)[0] for label in scores.labels if scores.of(label, test_set, task)]
        answers = {run.label: _answers(run) for run in runs if run.label != ORACLE}
        for row in list(next(iter(answers.values())).values())[:_SHOWN]:
            outputs = {label: of[row["id"]]["generated"] for label, of in answers.items() if row["id"] in of}
            yield ComparisonSample(test_set, task, row["input"], row["reference"], outputs)


def _answers(run: Run) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_csv(run.answers) if row["task"] == run.task}
