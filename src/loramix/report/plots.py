"""Plots of losses, drawn with matplotlib."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.atomic import atomic_file
from loramix.errors import MissingExtraError
from loramix.report.content import LossRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = "#56b4e9", "#d55e00"  # Okabe and Ito's palette, safe for colour-blind readers
_INK = "#000000"
_FEW = 30  # points that are drawn as dots as well; more would hide the line
_FOLLOW_PAGE = (
    "<style>svg{color:#1c2024;fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#d5d9de}}</style>"
)


def plot_losses(title: str, rows: Sequence[LossRow], path: Path) -> None:
    """Write a PNG of the training and validation loss over the epochs, the best validation loss marked."""
    figure = _losses(title, rows)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def losses_svg(title: str, rows: Sequence[LossRow]) -> str:
    """Return the same plot as SVG text, transparent, in ink that follows the reader's light or dark setting."""
    figure = _losses(title, rows)
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "loramix"}):  # the same drawing gets the same names every time
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    opening, _, content = drawing[drawing.index("<svg") :].partition(">")
    return f"{opening}>{_FOLLOW_PAGE}{content.replace(_INK, 'currentColor')}"


def _losses(title: str, rows: Sequence[LossRow]) -> "Figure":
    figure = _figure(4.2, 2.8)
    axis = figure.subplots()
    training = _points((row.epoch, row.training) for row in rows)
    validation = _points((row.epoch, row.validation) for row in rows)
    if training:
        dots = "." if len(training) <= _FEW else None
        axis.plot(*zip(*training, strict=True), color=_TRAINING, marker=dots, label="training")
    if validation:
        axis.plot(*zip(*validation, strict=True), color=_VALIDATION, marker="o", markersize=4, label="validation")
        epoch, loss = min(validation, key=lambda point: point[1])
        axis.plot(
            [epoch], [loss], "*", color=_VALIDATION, markersize=13, label=f"best, {loss:.3f} at epoch {epoch:.3g}"
        )
    axis.set_title(title, parse_math=False)
    axis.set(xlabel="epoch", ylabel="loss per target token")
    axis.margins(y=0.1)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if training or validation:
        axis.legend(frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no losses recorded", transform=axis.transAxes, ha="center")
    return figure


def _points(pairs: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Return the pairs that can be drawn."""
    return [(epoch, loss) for epoch, loss in pairs if loss is not None and math.isfinite(loss)]


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return Figure(figsize=(width, height), layout="constrained")
