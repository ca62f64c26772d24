"""Plots of what happens over training, drawn with matplotlib."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.errors import MissingExtraError
from loramix.report.comparison_content import RoutingStep
from loramix.report.content import LossRow
from loramix.storage.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = (
    "#56b4e9",
    "#d55e00",
)  # Okabe and Ito's palette, safe for colour-blind readers
# Okabe and Ito's colours of experts, which most eyes tell apart (https://jfly.uni-koeln.de/color/),
# and the dashes of tasks; both start again where there are more
EXPERT_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
    "#f0e442",
    "#999999",
)
_TASKS = ("-", "--", ":", "-.")
_INK, _GREY = "#000000", "#808080"
_FEW = 30  # points that are drawn as dots as well; more would hide the line
_ENTRY = 0.2  # inches that a line of a legend below a plot takes
_FOLLOW_PAGE = (
    "<style>svg{color:#1c2024;fill:currentColor}"
    "@media(prefers-color-scheme:dark){svg{color:#d5d9de}}</style>"
)


def plot_losses(title: str, rows: Sequence[LossRow], path: Path) -> None:
    """Write a PNG of the training and validation loss over the epochs, the best validation loss
    marked.
    """
    figure = _losses(title, rows)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def losses_svg(title: str, rows: Sequence[LossRow]) -> str:
    """Return the same plot as SVG text."""
    return _svg(_losses(title, rows))


def routing_svg(title: str, rows: Sequence[RoutingStep]) -> str:
    """Return a plot of the experts' mean weights over the steps as SVG text: a colour per expert, a
    dash per task.
    """
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if math.isfinite(row.weight):
            lines.setdefault((row.expert, row.task), []).append((row.step, row.weight))
    colours = _in_turn((expert for expert, _ in lines), EXPERT_COLOURS)
    dashes = _in_turn((task for _, task in lines), _TASKS)
    figure, axis = _axes(title)
    for (expert, task), points in lines.items():
        marker = "." if len(points) <= _FEW else None
        axis.plot(
            *zip(*sorted(points), strict=True),
            color=colours[expert],
            linestyle=dashes[task],
            marker=marker,
        )
    weights = [weight for points in lines.values() for _, weight in points]
    axis.set(xlabel="step", ylabel="mean weight")
    axis.set_ylim(
        min([0.0, *weights]) - 0.04, max([1.0, *weights]) + 0.04
    )  # one scale for all models
    if lines:
        _explain(figure, colours, dashes)
    else:
        axis.text(0.5, 0.5, "no weights recorded", transform=axis.transAxes, ha="center")
    return _svg(figure)


def _explain(figure: "Figure", colours: dict[str, str], dashes: dict[str, str]) -> None:
    """Say below a plot which colour is which expert and which dash is which task."""
    from matplotlib.lines import Line2D

    entries = {
        f"expert {expert}": Line2D([], [], color=colour) for expert, colour in colours.items()
    }
    entries |= {
        f"{task} prompts": Line2D([], [], color=_GREY, linestyle=dash)
        for task, dash in dashes.items()
    }
    figure.set_figheight(figure.get_figheight() + _ENTRY * math.ceil(len(entries) / 2))
    legend = figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _in_turn(names: Iterable[str], looks: Sequence[str]) -> dict[str, str]:
    return {name: looks[index % len(looks)] for index, name in enumerate(dict.fromkeys(names))}


def _svg(figure: "Figure") -> str:
    """Return a figure as SVG text, transparent, in ink that follows the reader's light or dark
    setting.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": "loramix"}
    ):  # the same drawing gets the same names every time
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawing = text.getvalue()
    opening, _, content = drawing[drawing.index("<svg") :].partition(">")
    return f"{opening}>{_FOLLOW_PAGE}{content.replace(_INK, 'currentColor')}"


def _losses(title: str, rows: Sequence[LossRow]) -> "Figure":
    figure, axis = _axes(title)
    training = _points((row.epoch, row.training) for row in rows)
    validation = _points((row.epoch, row.validation) for row in rows)
    if training:
        dots = "." if len(training) <= _FEW else None
        axis.plot(*zip(*training, strict=True), color=_TRAINING, marker=dots, label="training")
    if validation:
        axis.plot(
            *zip(*validation, strict=True),
            color=_VALIDATION,
            marker="o",
            markersize=4,
            label="validation",
        )
        epoch, loss = min(validation, key=lambda point: point[1])
        axis.plot(
            [epoch],
            [loss],
            "*",
            color=_VALIDATION,
            markersize=13,
            label=f"best, {loss:.3f} at epoch {epoch:.3g}",
        )
    axis.set(xlabel="epoch", ylabel="loss per target token")
    axis.margins(y=0.1)
    if training or validation:
        axis.legend(frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no losses recorded", transform=axis.transAxes, ha="center")
    return figure


def _points(pairs: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Return the pairs that can be drawn."""
    return [(epoch, loss) for epoch, loss in pairs if loss is not None and math.isfinite(loss)]


def _axes(title: str) -> "tuple[Figure, Axes]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, parse_math=False)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
