"""A picture of the experts' weights for a few prompts, as SVG that follows a light or dark page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from loramix.report.plots import EXPERT_COLOURS

_WIDTH, _MARGIN = 500, 20  # narrow, so that a phone shrinks its texts little
_HEAD, _STRIP, _GAP = 44, 40, 16  # pixels: a prompt's two lines, its columns, the room below
_ROW = 22  # of the legend
_VISIBLE = 0.1  # pixels; what is thinner is left out
_CHARACTERS = 56  # of a line; more would leave the picture
# The card has a ground of its own: a page may be dark where the reader's system is light.
_STYLE = """<style>
.ground{fill:#fff;stroke:#dde1e6}.ink{fill:#1c2024}.soft{fill:#5d6670}
text{font:14px system-ui,-apple-system,"Segoe UI",sans-serif}
.small{font-size:12px}.prompt{font-weight:600}
@media(prefers-color-scheme:dark){
.ground{fill:#16191d;stroke:#353b43}.ink{fill:#e6e8eb}.soft{fill:#a0a9b3}}
</style>"""


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt, and the weights that each adapted layer gives the experts, first layer first."""

    prompt: str
    layers: Mapping[str, Sequence[float]]
    mean: Sequence[float]


def routing_svg(experts: Sequence[str], prompts: Sequence[RoutedPrompt]) -> str:
    """Return a strip of columns per prompt, one for each layer, split by the experts' weights.

    Columns share one scale: their whole height is a sum of weights of 1, or the largest sum if
    that is more.
    """
    foot = _MARGIN + len(prompts) * (_HEAD + _STRIP + _GAP)
    height = foot + _ROW * (_rows(experts) + 1) + _MARGIN // 2
    sums = [sum(map(_drawn, weights)) for each in prompts for weights in each.layers.values()]
    largest = max([1.0, *sums])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{_spoken(experts, prompts)}">',
        _STYLE,
        f'<rect class="ground" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="10"/>',
    ]
    for index, each in enumerate(prompts):
        top = _MARGIN + index * (_HEAD + _STRIP + _GAP)
        parts.append(_heading(experts, each, top + 12))
        parts += _columns(each, top + _HEAD, largest)
    parts += [*_legend(experts, foot + _ROW // 2), "</svg>"]
    return "\n".join(parts) + "\n"


def colour(expert: int) -> str:
    """Return the colour of an expert by its place; colours start again where there are more."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def _line(text: str) -> str:
    """Return a text as one line, without the characters that XML does not allow."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _drawn(weight: float) -> float:
    return max(0.0, weight)


def _columns(prompt: RoutedPrompt, top: int, largest: float) -> list[str]:
    """Return a path per expert: layers from left to right, experts from the bottom up."""
    width = (_WIDTH - 2 * _MARGIN) / max(len(prompt.layers), 1)
    wide = f"{width - (1 if width > 4 else 0):.2f}"
    paths: dict[int, list[str]] = {}
    for place, weights in enumerate(prompt.layers.values()):
        bottom = float(top + _STRIP)
        for expert, weight in enumerate(map(_drawn, weights)):
            size = _STRIP * weight / largest
            bottom -= size
            if size >= _VISIBLE:
                column = f"M{_MARGIN + place * width:.2f} {bottom:.1f}h{wide}v{size:.1f}h-{wide}z"
                paths.setdefault(expert, []).append(column)
    return [
        f'<path shape-rendering="crispEdges" fill="{colour(each)}" d="{"".join(paths[each])}"/>'
        for each in sorted(paths)
    ]


def _heading(experts: Sequence[str], prompt: RoutedPrompt, y: int) -> str:
    """Return the prompt and, below it, the expert with the largest mean weight."""
    leader = max(range(len(experts)), key=lambda expert: prompt.mean[expert])
    weight = f"{prompt.mean[leader]:z.2f}"
    told = f"{_cut(_line(experts[leader]), _CHARACTERS - len(weight) - 1)} {weight}"
    shown = _cut(_line(prompt.prompt), _CHARACTERS)
    return (
        f'<text class="ink prompt" x="{_MARGIN}" y="{y}">{escape(shown)}</text>'
        f'<text class="soft" x="{_MARGIN}" y="{y + 20}">{escape(told)}</text>'
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _legend(experts: Sequence[str], top: int) -> list[str]:
    """Return the experts with their colours, row after row, and what the columns are."""
    drawn, x, y = [], _MARGIN, top
    for index, expert in enumerate(map(_line, experts)):
        if x + _entry(expert) > _WIDTH - _MARGIN and x > _MARGIN:
            x, y = _MARGIN, y + _ROW
        drawn.append(
            f'<rect x="{x}" y="{y - 10}" width="11" height="11" rx="2" '
            f'fill="{colour(index)}"/>'
            f'<text class="ink small" x="{x + 16}" y="{y}">{escape(expert)}</text>'
        )
        x += _entry(expert)
    note = "Columns: adapted layers, first to last. Colours: the experts' weights."
    drawn.append(f'<text class="soft small" x="{_MARGIN}" y="{y + _ROW}">{note}</text>')
    return drawn


def _rows(experts: Sequence[str]) -> int:
    """Return how many rows the legend has."""
    return 1 + sum(each.startswith(f'<rect x="{_MARGIN}"') for each in _legend(experts, 0)[1:])


def _entry(expert: str) -> int:
    return 34 + 7 * len(expert)


def _spoken(experts: Sequence[str], prompts: Sequence[RoutedPrompt]) -> str:
    """Return the mean weights in words, for those who cannot see the picture."""
    told = []
    for each in prompts:
        weights = zip(experts, each.mean, strict=True)
        shares = ", ".join(f"{_line(expert)} {weight:z.2f}" for expert, weight in weights)
        told.append(f"“{_line(each.prompt)}”: {shares}")
    return escape(f"Mean weight of each expert. {'; '.join(told)}", quote=True)
