"""What the page of a comparison shows, as plain data. A number that is None or no finite number is
shown as a dash.
"""

from dataclasses import dataclass
from typing import Literal

from loramix.report.content import LossRow, WeightRow


@dataclass(frozen=True)
class Claim:
    """What the comparison was to find out; `holds` is None where the evidence does not decide
    it.
    """

    text: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True)
class Score:
    """A value with its interval; "tied" marks one that is not significantly worse than the best."""

    value: float
    low: float | None
    high: float | None
    mark: Literal["best", "tied", ""]


@dataclass(frozen=True)
class ScoreTable:
    """Scores, one row per model; `columns` names the scores, so a row has a model and as many
    scores.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Score | None]]]


@dataclass(frozen=True)
class Forest:
    """One measure of all models, drawn as points with intervals in the order of the rows."""

    title: str
    measure: str
    better: Literal["higher", "lower", "neither"]
    rows: list[tuple[str, Score]]


@dataclass(frozen=True)
class Matrix:
    """What every expert (a row) scores on every task (a column)."""

    title: str
    note: str
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]


@dataclass(frozen=True)
class Routing:
    """The weights that one model gives the experts on one test set."""

    title: str
    rows: list[WeightRow]
    facts: list[tuple[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class RoutingStep:
    """The mean weight of an expert on a task's prompts at one step of the gates' training."""

    step: int
    task: str
    expert: str
    weight: float


@dataclass(frozen=True)
class ComparisonSample:
    """One test sample and what every model answered."""

    test_set: str
    task: str
    input: str
    reference: str
    outputs: dict[str, str]


@dataclass(frozen=True)
class ComparisonReport:
    """Everything on the page, in its order; the first table is the headline, `steps` and `losses`
    go by model.
    """

    title: str
    claims: list[Claim]
    facts: list[tuple[str, str]]
    tables: list[ScoreTable]
    forests: list[Forest]
    matrix: Matrix | None
    routing: list[Routing]
    steps: dict[str, list[RoutingStep]]
    losses: dict[str, list[LossRow]]
    samples: list[ComparisonSample]
    recipe: str
