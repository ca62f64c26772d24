"""Values with their intervals, one model below the other, placed for drawing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from loramix.report.comparison_content import Forest, Score

WIDTH = 400
_LETTER = 6.1  # mean width of a letter in the drawing's font size
_LONGEST = 26  # letters of a name before its middle is left out
_VALUE = 44.0  # room for a value at the right edge
_ROW, _ABOVE, _BELOW = 19.0, 6.0, 24.0
_TICKS = 5  # at most, about


@dataclass(frozen=True)
class Row:
    """One model: `x` and `span` are places, None where there is nothing to draw."""

    name: str
    label: str
    score: Score
    y: float
    x: float | None
    span: tuple[float, float] | None


@dataclass(frozen=True)
class Drawing:
    """A forest plot: everything but `ticks`' labels and the rows' texts is a place in a drawing of
    `WIDTH`.
    """

    forest: Forest
    left: float
    right: float
    bottom: float
    height: float
    ticks: list[tuple[float, str]]
    oracle: float | None
    rows: list[Row]


def drawing(forest: Forest) -> Drawing:
    """Return the places of a forest plot; the first model called "oracle" gives the line to compare
    with.
    """
    left = 10 + _LETTER * max((len(shortened(name)) for name, _ in forest.rows), default=0)
    right = WIDTH - _VALUE
    low, high = _domain(
        number for _, score in forest.rows for number in (score.value, score.low, score.high)
    )

    def place(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    rows = [
        Row(
            name,
            shortened(name),
            score,
            y=_ABOVE + _ROW * (index + 0.5),
            x=place(score.value) if math.isfinite(score.value) else None,
            span=(place(score.low), place(score.high))
            if _finite(score.low) and _finite(score.high)
            else None,
        )
        for index, (name, score) in enumerate(forest.rows)
    ]
    bottom = _ABOVE + _ROW * len(rows)
    return Drawing(
        forest,
        left=round(left, 1),
        right=right,
        bottom=bottom,
        height=bottom + _BELOW,
        ticks=[(place(value), label) for value, label in ticks(low, high)],
        oracle=next((row.x for row in rows if row.name.casefold() == "oracle"), None),
        rows=rows,
    )


def shortened(name: str) -> str:
    """Return a name without its middle where it is long: names of like models often differ at their
    ends.
    """
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half].rstrip()}…{name[1 - half :].lstrip()}"


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return round numbers between two others, with their labels."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    count = math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
    values = [(math.ceil(low / step - 1e-9) + index) * step for index in range(count)]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


def _domain(numbers: Iterable[float | None]) -> tuple[float, float]:
    """Return a range that holds all numbers with a little room on both sides."""
    finite = [number for number in numbers if _finite(number)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _finite(number: float | None) -> TypeGuard[float]:
    return number is not None and math.isfinite(number)
