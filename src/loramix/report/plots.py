"""Plots of what changes over training, drawn with matplotlib."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.errors import MissingExtraError
from loramix.report.content import LossRow, WeightStep
from loramix.storage.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart
# (https://jfly.uni-koeln.de/color/). Colours and dashes start again where there are more names.
_TRAINING, _VALIDATION = "#56b4e9", "#d55e00"
EXPERT_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
    *("#d55e00", "#56b4e9", "#f0e442", "#999999"),
)
_TASK_DASHES = ("-", "--", ":", "-.")
_INK, _GREY = "#000000", "#808080"

_FEW = 30  # points that are drawn as dots as well; more would hide the line
_ENTRY = 0.2  # inches that a line of a legend below a plot takes
_FOLLOW_PAGE = (
    "<style>svg{color:#1c2024;fill:currentColor}"
    "@media(prefers-color-scheme:dark){svg{color:#d5d9de}}</style>"
)

Point = tuple[float, float]


def plot_losses(title: str, rows: Sequence[LossRow], path: Path) -> None:
    """Write a PNG of the training and validation losses; the best validation loss is marked."""
    figure = _losses(title, rows)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def losses_svg(title: str, rows: Sequence[LossRow]) -> str:
    """Return the plot of `plot_losses` as SVG text."""
    return _svg(_losses(title, rows))


def weights_svg(title: str, rows: Sequence[WeightStep]) -> str:
    """Return a plot of the experts' mean weights over the steps of training, as SVG text.

    Each expert has a colour, each task a dash.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        if math.isfinite(row.weight):
            lines.setdefault((row.expert, row.task), []).append((row.step, row.weight))
    colours = _in_turn((expert for expert, _ in lines), EXPERT_COLOURS)
    dashes = _in_turn((task for _, task in lines), _TASK_DASHES)
    figure, axis = _axes(title)
    axis.set(xlabel="step", ylabel="mean weight")
    low, high = 0.0, 1.0  # at least these, so that all plots share a scale
    for (expert, task), points in lines.items():
        steps, weights = zip(*sorted(points), strict=True)
        low, high = min(low, *weights), max(high, *weights)
        marker = "." if len(points) <= _FEW else None
        axis.plot(steps, weights, color=colours[expert], linestyle=dashes[task], marker=marker)
    axis.set_ylim(low - 0.04, high + 0.04)
    if lines:
        _add_legend(figure, colours, dashes)
    else:
        axis.text(0.5, 0.5, "no weights recorded", transform=axis.transAxes, ha="center")
    return _svg(figure)


def sweep_svg(key: str, points: Sequence[tuple[str, float]]) -> str:
    """Return a plot of losses over the values of a setting, evenly spaced, as SVG text.

    points: (value, loss) of every run; the line joins the lowest loss of each value.
    """
    values = sorted(dict.fromkeys(value for value, _ in points), key=_as_number)
    figure, axis = _axes(key)
    axis.set(ylabel="validation loss")
    places = [values.index(value) for value, _ in points]
    axis.plot(places, [loss for _, loss in points], ".", color=_TRAINING)
    lowest = [min(loss for value, loss in points if value == each) for each in values]
    axis.plot(range(len(values)), lowest, "o-", color=_VALIDATION, markersize=4)
    axis.set_xticks(range(len(values)), values)
    for text in axis.get_xticklabels():
        text.set_parse_math(False)
    axis.margins(x=0.1, y=0.1)
    return _svg(figure)


def _as_number(value: str) -> tuple[float, str]:
    """Return the place of a value: numbers by size, then texts."""
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


def _losses(title: str, rows: Sequence[LossRow]) -> "Figure":
    figure, axis = _axes(title)
    axis.set(xlabel="epoch", ylabel="loss per target token")
    training = _points((row.epoch, row.training) for row in rows)
    validation = _points((row.epoch, row.validation) for row in rows)
    if training:
        dots = "." if len(training) <= _FEW else None
        epochs, losses = zip(*training, strict=True)
        axis.plot(epochs, losses, color=_TRAINING, marker=dots, label="training")
    if validation:
        epochs, losses = zip(*validation, strict=True)
        line = axis.plot(epochs, losses, "o-", color=_VALIDATION, label="validation")[0]
        line.set_markersize(4)
        epoch, loss = min(validation, key=lambda point: point[1])
        label = f"best, {loss:.3f} at epoch {epoch:.3g}"
        axis.plot([epoch], [loss], "*", color=_VALIDATION, markersize=13, label=label)
    axis.margins(y=0.1)
    if training or validation:
        axis.legend(frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no losses recorded", transform=axis.transAxes, ha="center")
    return figure


def _points(pairs: Iterable[tuple[float, float | None]]) -> list[Point]:
    """Return the pairs that can be drawn."""
    return [(epoch, loss) for epoch, loss in pairs if loss is not None and math.isfinite(loss)]


def _in_turn(names: Iterable[str], looks: Sequence[str]) -> dict[str, str]:
    return {name: looks[index % len(looks)] for index, name in enumerate(dict.fromkeys(names))}


def _add_legend(figure: "Figure", colours: dict[str, str], dashes: dict[str, str]) -> None:
    """Add the colours of experts and the dashes of tasks below a plot."""
    from matplotlib.lines import Line2D

    entries: dict[str, Line2D] = {}
    for expert, colour in colours.items():
        entries[f"expert {expert}"] = Line2D([], [], color=colour)
    for task, dash in dashes.items():
        entries[f"{task} prompts"] = Line2D([], [], color=_GREY, linestyle=dash)
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
        text.set_parse_math(False)  # a $ in a name is a dollar sign


def _axes(title: str) -> "tuple[Figure, Axes]":
    # Figure rather than pyplot, which would keep every figure and pick a window system.
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


def _svg(figure: "Figure") -> str:
    """Return a figure as SVG text, transparent, in ink that follows a light or dark page."""
    import matplotlib

    text = io.StringIO()
    # With a fixed salt and no date, the same figure gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "loramix"}):
        undated = {"Date": None, "Creator": None}
        figure.savefig(text, format="svg", transparent=True, metadata=undated)
    drawing = text.getvalue()
    opening, _, content = drawing[drawing.index("<svg") :].partition(">")
    return f"{opening}>{_FOLLOW_PAGE}{content.replace(_INK, 'currentColor')}"
