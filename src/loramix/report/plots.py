"""Plots of losses and gate weights, drawn with matplotlib."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.atomic import atomic_file
from loramix.errors import MissingExtraError
from loramix.report.content import LossRow, WeightRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito's palette, safe for colour-blind readers


def plot_losses(title: str, rows: Sequence[LossRow], path: Path) -> None:
    """Write a PNG of the training and validation loss over the epochs, the best validation loss marked."""
    figure = _losses(title, rows)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def losses_svg(title: str, rows: Sequence[LossRow]) -> str:
    """Return the same plot as SVG text."""
    return _svg(_losses(title, rows))


def weights_svg(rows: Sequence[WeightRow]) -> str:
    """Return a heat map of mean weights as SVG text: a panel per task and expert, blocks down, projections across.

    With two experts the second one's weight is the rest to 1, so only the first is drawn.
    """
    tasks, experts = list(dict.fromkeys(r.task for r in rows)), list(dict.fromkeys(r.expert for r in rows))
    shown = experts[:1] if len(experts) == 2 else experts
    places = {row.layer: _place(row.layer) for row in rows}
    blocks = list(dict.fromkeys(block for block, _ in places.values()))
    projections = list(dict.fromkeys(projection for _, projection in places.values()))
    figure = _figure(1.4 + 0.55 * len(projections) * len(tasks) * len(shown) + len(tasks), 1.3 + 0.2 * len(blocks))
    axes = figure.subplots(1, len(tasks) * len(shown), squeeze=False, sharey=True)[0]
    image = None
    for axis, (task, expert) in zip(axes, [(task, expert) for task in tasks for expert in shown], strict=True):
        grid = [[float("nan")] * len(projections) for _ in blocks]
        for row in rows:
            if row.task == task and row.expert == expert:
                block, projection = places[row.layer]
                grid[blocks.index(block)][projections.index(projection)] = row.weight
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        axis.set_title(f"weight of {expert}\non {task} prompts", fontsize=9)
        axis.set_xticks(range(len(projections)), projections, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(blocks)), blocks, fontsize=6)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="mean weight")
    return _svg(figure)


def _place(layer: str) -> tuple[str, str]:
    """Split a layer's name into its block (up to the first number) and its projection."""
    match = re.match(r"(?P<block>.*?\d+)\.(?P<rest>.*)", layer)
    if not match:
        return layer, layer.rpartition(".")[2]
    block = re.sub(r"^(model|transformer)\.", "", match["block"])
    parts = [part for part in match["rest"].split(".") if not part.isdigit() and part != "layer"]
    decoder = [part for part in parts[:-1] if part in ("SelfAttention", "EncDecAttention", "encoder_attn")]
    return block, " ".join([*(part.replace("Attention", "") for part in decoder), parts[-1]])


def _losses(title: str, rows: Sequence[LossRow]) -> "Figure":
    figure = _figure(5.2, 3.2)
    axis = figure.subplots()
    training = [(row.epoch, row.training) for row in rows if row.training is not None]
    validation = [(row.epoch, row.validation) for row in rows if row.validation is not None]
    if training:
        axis.plot(*zip(*training, strict=True), color=_TRAINING, label="training")
    if validation:
        axis.plot(*zip(*validation, strict=True), color=_VALIDATION, marker="o", label="validation")
        epoch, loss = min(validation, key=lambda point: point[1])
        axis.annotate(f"best {loss:.3f}", (epoch, loss), textcoords="offset points", xytext=(-4, 9), ha="right", fontsize=8)
    axis.set(title=title, xlabel="epoch", ylabel="loss per target token")
    axis.grid(alpha=0.25)
    if training or validation:
        axis.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]
