"""The page of a run: one HTML file that needs no other file."""

import math

from loramix.report.content import RunReport, RunTable, mean_weights
from loramix.report.heatmap import weight_heatmap
from loramix.report.page import data_uri, fill_template
from loramix.report.plots import losses_svg

_SHOWN_SAMPLES = 20  # of each task


def run_page(report: RunReport) -> str:
    """Return the page of a run; all text from data and models is escaped."""
    plots = {label: data_uri(losses_svg(label, rows)) for label, rows in report.losses.items()}
    return fill_template(
        "run.html",
        report=report,
        samples={task: rows[:_SHOWN_SAMPLES] for task, rows in report.samples.items()},
        losses=plots,
        heatmap=weight_heatmap(report.weights),
        means=mean_weights(report.weights),
        best=best_cells,
        share=_share,
        number=_number,
    )


def best_cells(table: RunTable) -> set[tuple[int, int]]:
    """Return (row, column) of the best values of every numeric column.

    A column of equal numbers has none.
    """
    cells: set[tuple[int, int]] = set()
    for column in range(1, len(table.columns)):
        values = _values(table, column)
        if table.best and len(set(values.values())) > 1:
            best = max(values.values()) if table.best == "max" else min(values.values())
            cells |= {(row, column) for row, value in values.items() if value == best}
    return cells


def _values(table: RunTable, column: int) -> dict[int, float]:
    """Return the finite numbers of a column, by row."""
    values: dict[int, float] = {}
    for row, cells in enumerate(table.rows):
        cell = cells[column]
        if isinstance(cell, int | float) and math.isfinite(cell):
            values[row] = cell
    return values


def _share(table: RunTable, row: int, column: int) -> int:
    """Return how much of a cell its shade fills: percent of the column's largest number.

    A column of equal numbers has no shade: there is nothing to compare.
    """
    values = _values(table, column)
    largest = max(values.values(), default=0.0)
    smallest = min(values.values(), default=0.0)
    if largest <= max(0.0, smallest):
        return 0
    return round(100 * max(values.get(row, 0.0), 0.0) / largest)


def _number(table: RunTable, row: int, column: int) -> str:
    """Return a cell's number with three decimals, or with none in a column of counts."""
    values = _values(table, column)
    if row not in values:
        return "–"
    # A column of nothing but 0 and 1 holds shares rather than counts.
    counts = all(value == round(value) for value in values.values()) and max(values.values()) > 1
    return f"{values[row]:z.0f}" if counts else f"{values[row]:z.3f}"
