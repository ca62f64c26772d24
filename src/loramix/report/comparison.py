"""The page of a comparison: one HTML file that needs no other file and can be searched."""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from loramix.report.content import Claim, ComparisonReport, MeanScore, mean_weights
from loramix.report.heatmap import weight_heatmap
from loramix.report.intervals import WIDTH, forest_plot
from loramix.report.page import data_uri, fill_template, read_asset
from loramix.report.plots import losses_svg, weights_svg

_SHOWN_CLAIMS = 16  # of more, those that hold unfold
_OPEN_TABLES = 3  # shown at once below the headline; the others unfold


def comparison_page(report: ComparisonReport) -> str:
    """Return the page of a comparison.

    All text from data and models is escaped, and no script but the page's own may run.
    """
    # The page allows no other script than this one, by its hash: escaping has a second line.
    script = read_asset("search.js")
    routed = [
        (routed, weight_heatmap(routed.rows), mean_weights(routed.rows))
        for routed in report.routing_weights
    ]
    losses = {label: losses_svg(label, rows) for label, rows in report.losses.items()}
    weights = {label: weights_svg(label, rows) for label, rows in report.weight_steps.items()}
    return fill_template(
        "comparison.html",
        report=report,
        script=script,
        script_hash=script_hash(script),
        verdict=verdict(report.claims),
        shown_claims=_SHOWN_CLAIMS,
        open_tables=_OPEN_TABLES,
        width=WIDTH,
        forests=[forest_plot(forest) for forest in report.forests],
        routed=routed,
        weight_steps={label: data_uri(svg) for label, svg in weights.items()},
        losses={label: data_uri(svg) for label, svg in losses.items()},
        models=_unique(model for sample in report.samples for model in sample.outputs),
        test_sets=_unique(sample.test_set for sample in report.samples),
        tasks=_unique(sample.task for sample in report.samples),
        number=number,
        interval=interval,
        shades=shades(report.matrix.cells) if report.matrix else [],
    )


def script_hash(script: str) -> str:
    """Return the source expression by which a Content-Security-Policy allows this one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def verdict(claims: Sequence[Claim]) -> str:
    """Return in one sentence how many claims hold."""
    hold = sum(claim.holds is True for claim in claims)
    fail = sum(claim.holds is False for claim in claims)
    undecided = len(claims) - hold - fail
    parts = [f"{hold} of {len(claims)} {'claim holds' if len(claims) == 1 else 'claims hold'}"]
    if fail:
        parts.append(f"{fail} {'does' if fail == 1 else 'do'} not")
    if undecided:
        parts.append(f"{undecided} {'is' if undecided == 1 else 'are'} undecided")
    return ", ".join(parts) + "."


def finite(value: float | None) -> TypeGuard[float]:
    """Return whether there is a number to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """Return a number with three decimals, or a dash for None and numbers that are not finite."""
    return f"{value:z.3f}".replace("-", "−") if finite(value) else "–"


def interval(score: MeanScore) -> str:
    """Return both ends of a score's interval, or an empty text if one of them is missing."""
    if not (finite(score.low) and finite(score.high)):
        return ""
    return f"{number(score.low)} to {number(score.high)}"


def shades(cells: Sequence[Sequence[float | None]]) -> list[list[int]]:
    """Return the shade of each cell: percent of the way from its column's smallest to largest."""
    columns = [_column_shades(column) for column in zip(*cells, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column_shades(column: Sequence[float | None]) -> list[int]:
    measured = [value for value in column if finite(value)]
    low, high = min(measured, default=0.0), max(measured, default=0.0)
    if high == low:
        return [0] * len(column)
    return [round(100 * (value - low) / (high - low)) if finite(value) else 0 for value in column]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
