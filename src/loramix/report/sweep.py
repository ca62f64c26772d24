"""The page of a sweep: one HTML file, with links to the pages of its runs."""

from urllib.parse import quote

from loramix.report.comparison import finite, number, shades
from loramix.report.content import SweepReport
from loramix.report.page import data_uri, fill_template
from loramix.report.plots import sweep_svg


def sweep_page(report: SweepReport) -> str:
    """Return the page of a sweep; all text from recipes is escaped."""
    first = [row.losses[0] for row in report.rows]
    measured = [loss for loss in first if finite(loss)]
    return fill_template(
        "sweep.html",
        report=report,
        plots=_plots(report) if report.compared else {},
        shades=[row[0] for row in shades([[loss] for loss in first])],
        lowest=min(measured, default=None),
        number=number,
        quote=quote,
    )


def _plots(report: SweepReport) -> dict[str, str]:
    """Return a plot of the loss over the values of every key, as data URIs."""
    plots = {}
    for place, key in enumerate(report.keys):
        points = [(row.values[place], row.losses[0]) for row in report.rows]
        measured = [(value, loss) for value, loss in points if finite(loss)]
        if measured:
            plots[key] = data_uri(sweep_svg(key, measured))
    return plots
