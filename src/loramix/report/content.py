"""The content of the pages, as plain data. A number that is None or not finite becomes a dash."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# --- on both pages


@dataclass(frozen=True)
class LossRow:
    """Mean losses per target token at one training step."""

    step: int
    epoch: float
    training: float | None
    validation: float | None


@dataclass(frozen=True)
class WeightRow:
    """The mean weight of an expert in one layer, over the test prompts of one task."""

    layer: str
    task: str
    expert: str
    weight: float


def mean_weights(rows: Sequence[WeightRow]) -> dict[str, dict[str, float]]:
    """Return the mean weight over all layers: task -> expert -> weight."""
    layers: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        layers.setdefault(row.task, {}).setdefault(row.expert, []).append(row.weight)
    means: dict[str, dict[str, float]] = {}
    for task, experts in layers.items():
        means[task] = {expert: sum(each) / len(each) for expert, each in experts.items()}
    return means


# --- on the page of a run


@dataclass(frozen=True)
class RunTable:
    """One row per model, its name first; `best` is the end of a column's range to mark, if any."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str | float | None]]
    best: Literal["max", "min"] | None


@dataclass(frozen=True)
class RunSample:
    """One test sample; `outputs` holds the answer of every model."""

    input: str
    reference: str
    outputs: dict[str, str]


@dataclass(frozen=True)
class RunReport:
    """The page of a run, in the order of its sections; `losses` are keyed by model.

    verdict: sentences that open the page, the most important first.
    verses: the tasks in whose texts ` / ` stands for a line break.
    """

    title: str
    summary: list[tuple[str, str]]
    tables: list[RunTable]
    losses: dict[str, list[LossRow]]
    weights: list[WeightRow]
    samples: dict[str, list[RunSample]]
    recipe: str
    verses: frozenset[str] = frozenset()
    verdict: tuple[str, ...] = ()


# --- on the page of a comparison


@dataclass(frozen=True)
class Claim:
    """A statement that the comparison tests; `holds` is None where the evidence is undecided."""

    text: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True)
class MeanScore:
    """A mean with its confidence interval; "tied" is not significantly worse than the best."""

    value: float
    low: float | None
    high: float | None
    mark: Literal["best", "tied", ""]


@dataclass(frozen=True)
class ScoreTable:
    """One row per model: its label and a score for each of `columns`."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[MeanScore | None]]]


@dataclass(frozen=True)
class Forest:
    """A forest plot of one measure: a point with an interval per model, in the order of `rows`."""

    title: str
    measure: str
    better: Literal["higher", "lower", "neither"]
    rows: list[tuple[str, MeanScore]]


@dataclass(frozen=True)
class Matrix:
    """The score of every expert (row) on every task (column)."""

    title: str
    note: str
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]


@dataclass(frozen=True)
class RoutingWeights:
    """The routing weights of one model on one test set, with the facts and warnings about them."""

    title: str
    rows: list[WeightRow]
    facts: list[tuple[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class WeightStep:
    """The mean weight of an expert on a task's prompts at one step of the gates' training."""

    step: int
    task: str
    expert: str
    weight: float


@dataclass(frozen=True)
class ComparisonSample:
    """One test sample; `outputs` holds the answer of every model."""

    test_set: str
    task: str
    input: str
    reference: str
    outputs: dict[str, str]


@dataclass(frozen=True)
class ComparisonReport:
    """The page of a comparison, in the order of its sections.

    The first table is the headline; `weight_steps` and `losses` are keyed by model.
    verses: the tasks in whose texts ` / ` stands for a line break.
    """

    title: str
    claims: list[Claim]
    facts: list[tuple[str, str]]
    tables: list[ScoreTable]
    forests: list[Forest]
    matrix: Matrix | None
    routing_weights: list[RoutingWeights]
    weight_steps: dict[str, list[WeightStep]]
    losses: dict[str, list[LossRow]]
    samples: list[ComparisonSample]
    recipe: str
    verses: frozenset[str] = frozenset()


# --- on the page of a sweep


@dataclass(frozen=True)
class SweepRow:
    """One setting of a sweep: its run's folder, and its cells under the columns of the report."""

    run: str
    values: list[str]
    losses: list[float | None]
    scores: list[float | None]


@dataclass(frozen=True)
class SweepReport:
    """The page of a sweep.

    summary: sentences that open the page, the most important first.
    keys: what was swept; losses: validation losses, the one that orders the rows first; scores: on
        test samples.
    compared: whether losses can be compared, and rows come by the first.
    reports: whether every run has a page.
    """

    title: str
    summary: list[str]
    keys: list[str]
    losses: list[str]
    scores: list[str]
    rows: list[SweepRow]
    compared: bool
    reports: bool
    recipe: str
