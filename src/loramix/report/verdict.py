"""The page of a verdict: what a mixture makes of prompts that its gates have not learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramix.report.page import fill_template


@dataclass(frozen=True)
class VerdictRow:
    """The held-out prompts of one expert.

    weights: the mean weight of every expert. losses: mean loss per target token by model; empty
        where there are no answers.
    share_of_gain: of the expert's gain over the base; None without answers, or without a gain.
    """

    expert: str
    examples: int
    weights: Mapping[str, float]
    losses: Mapping[str, float | None]
    share_of_gain: float | None


@dataclass(frozen=True)
class VerdictPage:
    """The content of the page."""

    title: str
    facts: Sequence[tuple[str, str]]
    experts: Sequence[str]
    rows: Sequence[VerdictRow]
    warnings: Sequence[str]


def verdict_page(page: VerdictPage) -> str:
    """Return one HTML file that needs no other file; all text is escaped."""
    answered = [row for row in page.rows if row.losses]
    return fill_template(
        "verdict.html",
        page=page,
        answered=answered,
        columns=list(answered[0].losses) if answered else [],
        bars=[_bars(row) for row in answered],
    )


def _bars(row: VerdictRow) -> dict[str, int]:
    """Return the length of each loss's bar, in percent of the row's largest."""
    largest = max((loss for loss in row.losses.values() if loss is not None), default=0.0) or 1.0
    return {name: round(100 * (loss or 0.0) / largest) for name, loss in row.losses.items()}
