"""The comparison of many models: one HTML page that needs nothing beside itself and can be
searched.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence

from loramix.report.comparison_content import (
    Claim,
    ComparisonReport,
    ComparisonSample,
    Forest,
    Matrix,
    Routing,
    RoutingStep,
    Score,
    ScoreTable,
)
from loramix.report.content import LossRow, WeightRow
from loramix.report.heatmap import arrange, mean_weights
from loramix.report.intervals import WIDTH, drawing
from loramix.report.page import page, picture, source
from loramix.report.plots import losses_svg, routing_svg

__all__ = [
    "Claim",
    "ComparisonReport",
    "ComparisonSample",
    "Forest",
    "LossRow",
    "Matrix",
    "Routing",
    "RoutingStep",
    "Score",
    "ScoreTable",
    "WeightRow",
    "render_comparison",
]

_OPEN_TABLES = 3  # shown at once below the headline; the others unfold


def render_comparison(report: ComparisonReport) -> str:
    """Return the page; every text from data or models is escaped, and no script but the page's own
    may run.
    """
    script = source("search.js")
    return page(
        "comparison.html",
        report=report,
        script=script,
        script_hash=script_hash(script),
        verdict=verdict(report.claims),
        open_tables=_OPEN_TABLES,
        width=WIDTH,
        drawings=[drawing(forest) for forest in report.forests],
        routing=[
            (routing, arrange(routing.rows), mean_weights(routing.rows))
            for routing in report.routing
        ],
        steps={label: picture(routing_svg(label, rows)) for label, rows in report.steps.items()},
        losses={label: picture(losses_svg(label, rows)) for label, rows in report.losses.items()},
        models=_unique(model for sample in report.samples for model in sample.outputs),
        test_sets=_unique(sample.test_set for sample in report.samples),
        tasks=_unique(sample.task for sample in report.samples),
        number=number,
        interval=interval,
        shades=shades(report.matrix.cells) if report.matrix else [],
    )


def script_hash(script: str) -> str:
    """Return what a Content-Security-Policy calls a script that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def verdict(claims: Sequence[Claim]) -> str:
    """Return in one sentence how many claims hold."""
    hold, fail = (
        sum(claim.holds is True for claim in claims),
        sum(claim.holds is False for claim in claims),
    )
    undecided = len(claims) - hold - fail
    parts = [f"{hold} of {len(claims)} {'claim holds' if len(claims) == 1 else 'claims hold'}"]
    parts += [f"{fail} {'does' if fail == 1 else 'do'} not"] if fail else []
    parts += [f"{undecided} {'is' if undecided == 1 else 'are'} undecided"] if undecided else []
    return ", ".join(parts) + "."


def number(value: float | None) -> str:
    """Return a number with three decimals, or a dash for none."""
    return f"{value:.3f}".replace("-", "−") if value is not None and math.isfinite(value) else "–"


def interval(score: Score) -> str:
    """Return the ends of a score's interval, or nothing where it has none."""
    ends = [number(end) for end in (score.low, score.high)]
    return "" if "–" in ends else " to ".join(ends)


def shades(cells: Sequence[Sequence[float | None]]) -> list[list[int]]:
    """Return how deep each cell's shade is, in percent: 0 for the smallest number of a column, 100
    for the largest.
    """
    columns = [_column_shades(column) for column in zip(*cells, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column_shades(column: Sequence[float | None]) -> list[int]:
    finite = [value for value in column if value is not None and math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [
        round(100 * (value - low) / (high - low))
        if value is not None and math.isfinite(value) and high > low
        else 0
        for value in column
    ]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
