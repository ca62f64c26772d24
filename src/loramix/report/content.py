"""What a report shows, as plain data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LossRow:
    """Mean losses per target token at one step."""

    step: int
    epoch: float
    training: float | None
    validation: float | None


@dataclass(frozen=True)
class WeightRow:
    """The mean weight, 0 to 1, that one layer's gate gives an expert on one task's test prompts."""

    layer: str
    task: str
    expert: str
    weight: float


@dataclass(frozen=True)
class Table:
    """Scores, one row per model, its name first; `best` says which value of a column is to be
    marked.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[list[str | float | None]]
    best: Literal["max", "min"] | None


@dataclass(frozen=True)
class SampleRow:
    """One test sample and what every model answered."""

    input: str
    reference: str
    outputs: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Everything on the page, in its order."""

    title: str
    summary: list[tuple[str, str]]
    tables: list[Table]
    losses: dict[str, list[LossRow]]
    weights: list[WeightRow]
    samples: dict[str, list[SampleRow]]
    recipe: str
