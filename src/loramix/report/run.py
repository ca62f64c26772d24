"""The report: one HTML page that needs nothing beside itself."""

import math

from loramix.report.content import LossRow, Report, SampleRow, Table, WeightRow
from loramix.report.heatmap import arrange, mean_weights
from loramix.report.page import page, picture
from loramix.report.plots import losses_svg

__all__ = ["LossRow", "Report", "SampleRow", "Table", "WeightRow", "render"]

_SAMPLES = 20  # shown per task


def render(report: Report) -> str:
    """Return the page; every text from data or models is escaped."""
    return page(
        "template.html",
        report=report,
        samples={task: rows[:_SAMPLES] for task, rows in report.samples.items()},
        losses={label: picture(losses_svg(label, rows)) for label, rows in report.losses.items()},
        heatmap=arrange(report.weights),
        means=mean_weights(report.weights),
        best=best_cells,
        share=_share,
        number=_number,
    )


def best_cells(table: Table) -> set[tuple[int, int]]:
    """Return (row, column) of the best value in every numeric column; none in a column where all
    are equal.
    """
    cells: set[tuple[int, int]] = set()
    for column in range(1, len(table.columns)):
        values = _values(table, column)
        if table.best and len(set(values.values())) > 1:
            best = max(values.values()) if table.best == "max" else min(values.values())
            cells |= {(row, column) for row, value in values.items() if value == best}
    return cells


def _values(table: Table, column: int) -> dict[int, float]:
    """Return the numbers of a column by row."""
    cells = {row: cells[column] for row, cells in enumerate(table.rows)}
    return {
        row: cell
        for row, cell in cells.items()
        if isinstance(cell, int | float) and math.isfinite(cell)
    }


def _share(table: Table, row: int, column: int) -> int:
    """Return how much of its cell the shade behind a number fills, in percent of the column's
    largest number.

    A column of equal numbers has no shade: there is nothing to compare.
    """
    values = _values(table, column)
    most = max(values.values(), default=0.0)
    return (
        round(100 * max(values.get(row, 0.0), 0.0) / most)
        if most > max(0.0, min(values.values(), default=0.0))
        else 0
    )


def _number(table: Table, row: int, column: int) -> str:
    """Return a cell's number with three decimals, or with none in a column of counts."""
    values = _values(table, column)
    if row not in values:
        return "–"
    counts = all(value == round(value) for value in values.values()) and max(values.values()) > 1
    return f"{values[row]:.0f}" if counts else f"{values[row]:.3f}"
