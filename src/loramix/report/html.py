"""The report: one HTML page that needs nothing beside itself."""

import base64
from collections.abc import Sequence
from importlib.resources import files

from loramix.errors import MissingExtraError
from loramix.report.content import LossRow, Report, SampleRow, Table, WeightRow
from loramix.report.plots import losses_svg, weights_svg

__all__ = ["LossRow", "Report", "SampleRow", "Table", "WeightRow", "render"]


def render(report: Report) -> str:
    """Return the page; every text from data or models is escaped."""
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("loramix.report") / "template.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        best=best_cells,
        picture=_picture,
        losses={label: losses_svg(label, rows) for label, rows in report.losses.items()},
        heatmap=weights_svg(report.weights) if report.weights else None,
        means=mean_weights(report.weights),
    )


def best_cells(table: Table) -> set[tuple[int, int]]:
    """Return (row, column) of the best value in every numeric column; none in a column where all are equal."""
    cells = set()
    for column in range(1, len(table.columns)):
        values = [(row, cells_[column]) for row, cells_ in enumerate(table.rows) if isinstance(cells_[column], float)]
        numbers = [value for _, value in values if isinstance(value, float)]
        if table.best and len(set(numbers)) > 1:
            best = max(numbers) if table.best == "max" else min(numbers)
            cells |= {(row, column) for row, value in values if value == best}
    return cells


def mean_weights(rows: Sequence[WeightRow]) -> dict[str, dict[str, float]]:
    """Return the mean weight over all layers, by task and expert."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.task, {}).setdefault(row.expert, []).append(row.weight)
    return {task: {expert: sum(w) / len(w) for expert, w in of.items()} for task, of in groups.items()}


def _picture(svg: str) -> str:
    """Return an SVG as a data URI: every drawing keeps its own names."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
