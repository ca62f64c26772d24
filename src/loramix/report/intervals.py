"""Forest plots: the score of each model with its interval, one model below the other."""

import math
from dataclasses import dataclass
from typing import TypeGuard

from loramix.report.content import Forest, MeanScore

# in units of the drawing, which a page scales to the width it has
WIDTH = 400
_LETTER = 6.1  # mean width of a letter in the drawing's font size
_VALUE = 44.0  # room for a value at the right edge
_ROW, _ABOVE, _BELOW = 19.0, 6.0, 24.0  # heights

_LONGEST = 26  # letters of a name before its middle is left out
_TICKS = 5  # at most, about


@dataclass(frozen=True)
class ForestRow:
    """One model; `x` is its score's coordinate and `span` its interval's, None if not finite."""

    name: str
    label: str
    score: MeanScore
    y: float
    x: float | None
    span: tuple[float, float] | None


@dataclass(frozen=True)
class ForestPlot:
    """The coordinates of a forest plot, in a drawing that is `WIDTH` wide.

    ticks: coordinates with their labels. oracle: of the line to compare with, if there is one.
    """

    forest: Forest
    left: float
    right: float
    bottom: float
    height: float
    ticks: list[tuple[float, str]]
    oracle: float | None
    rows: list[ForestRow]


def forest_plot(forest: Forest) -> ForestPlot:
    """Return the coordinates of a forest plot; the first model called "oracle" gives the line."""
    scale = _scale(forest)
    rows: list[ForestRow] = []
    for index, (name, score) in enumerate(forest.rows):
        y = _ABOVE + _ROW * (index + 0.5)
        x = scale.x(score.value) if math.isfinite(score.value) else None
        span = None
        if _finite(score.low) and _finite(score.high):
            span = scale.x(score.low), scale.x(score.high)
        rows.append(ForestRow(name, shortened(name), score, y, x, span))
    bottom = _ABOVE + _ROW * len(rows)
    return ForestPlot(
        forest,
        left=round(scale.left, 1),
        right=scale.right,
        bottom=bottom,
        height=bottom + _BELOW,
        ticks=[(scale.x(value), label) for value, label in ticks(scale.low, scale.high)],
        oracle=next((row.x for row in rows if row.name.casefold() == "oracle"), None),
        rows=rows,
    )


def shortened(name: str) -> str:
    """Return a long name without its middle: the names of similar models differ at their ends."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half].rstrip()}…{name[1 - half :].lstrip()}"


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return the round numbers from `low` to `high` at steps of 1, 2 or 5, with their labels."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    # 1e-9: a quotient that should be whole may come out just beside it
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [(first + index) * step for index in range(last - first + 1)]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


@dataclass(frozen=True)
class _Scale:
    """The values `low` to `high` drawn from `left` to `right`."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.left + share * (self.right - self.left), 1)


def _scale(forest: Forest) -> _Scale:
    """Return a scale that shows all numbers with a little room on both sides."""
    longest = max((len(shortened(name)) for name, _ in forest.rows), default=0)
    numbers: list[float | None] = []
    for _, score in forest.rows:
        numbers += [score.value, score.low, score.high]
    finite = [number for number in numbers if _finite(number)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05  # never 0, which would divide by it
    return _Scale(10 + _LETTER * longest, WIDTH - _VALUE, low - room, high + room)


def _finite(number: float | None) -> TypeGuard[float]:
    return number is not None and math.isfinite(number)
