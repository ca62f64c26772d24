"""Gate weights arranged for reading: blocks down, projections across, one panel per task and
expert.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loramix.report.content import WeightRow


@dataclass(frozen=True)
class Panel:
    """One task's weights of one expert; `rows` holds a block's label and a weight, or None, per
    projection.
    """

    task: str
    expert: str
    rows: list[tuple[str, list[float | None]]]


@dataclass(frozen=True)
class Heatmap:
    """Panels that share their columns; `even` is the weight that each expert has when none is
    preferred.
    """

    columns: list[str]
    panels: list[Panel]
    even: float

    def strength(self, weight: float) -> int:
        """Return how far a weight is from even, in percent of the way to 0 (negative) or to 1."""
        room = self.even if weight < self.even else 1 - self.even
        return round(100 * max(-1.0, min(1.0, (weight - self.even) / room))) if room else 0


def arrange(rows: Sequence[WeightRow]) -> Heatmap:
    """Return the heat map of `rows`, in their order.

    Where the weights of two experts sum to 1, the second's follows from the first's, and only the
    first is shown.
    """
    tasks, experts = _unique(row.task for row in rows), _unique(row.expert for row in rows)
    places = _places(_unique(row.layer for row in rows))
    blocks, projections = (
        _unique(b for b, _ in places.values()),
        _unique(p for _, p in places.values()),
    )
    weights = {(row.task, row.expert, *places[row.layer]): row.weight for row in rows}
    labels = _block_labels(blocks)
    follows = len(experts) == 2 and _sum_to_one(rows)
    panels = [
        Panel(
            task,
            expert,
            [(labels[b], [weights.get((task, expert, b, p)) for p in projections]) for b in blocks],
        )
        for task in tasks
        for expert in (experts[:1] if follows else experts)
    ]
    return Heatmap(_short(projections), panels, 1 / max(len(experts), 1))


def mean_weights(rows: Sequence[WeightRow]) -> dict[str, dict[str, float]]:
    """Return the mean weight over all layers, by task and expert."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.task, {}).setdefault(row.expert, []).append(row.weight)
    return {
        task: {expert: sum(w) / len(w) for expert, w in of.items()} for task, of in groups.items()
    }


def _sum_to_one(rows: Sequence[WeightRow]) -> bool:
    sums: dict[tuple[str, str], float] = {}
    for row in rows:
        sums[row.task, row.layer] = sums.get((row.task, row.layer), 0.0) + row.weight
    return all(abs(total - 1) < 1e-3 for total in sums.values())


def _places(layers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return every layer's block and projection.

    Further numbers are left out of the projection (T5 numbers the parts of a block differently in
    encoder and decoder), unless two layers would then share a place.
    """
    full = {layer: _split(layer) for layer in layers}
    brief = {
        layer: (block, re.sub(r"(^|\.)(layer\.)?\d+(?=\.)", "", p).lstrip("."))
        for layer, (block, p) in full.items()
    }
    return brief if len(set(brief.values())) == len(layers) else full


def _split(layer: str) -> tuple[str, str]:
    """Split a layer's name after the first number in it, or before its last word if there is
    none.
    """
    match = re.fullmatch(r"((?:[^.]+\.)*?\d+)\.(.+)", layer)
    if match:
        return match[1], match[2]
    parent, _, name = layer.rpartition(".")
    return parent or name, name


def _block_labels(blocks: Sequence[str]) -> dict[str, str]:
    """Return the blocks' names without the leading words that all of them share, but with the word
    at the number.
    """
    words = {block: block.split(".") for block in blocks}
    shared = 0
    most = min((len(parts) for parts in words.values()), default=0) - 2
    while shared < most and len({parts[shared] for parts in words.values()}) == 1:
        shared += 1
    return {block: " ".join(parts[shared:]) for block, parts in words.items()}


def _short(names: Sequence[str]) -> list[str]:
    """Return the fewest last words of every name that keep all names apart."""
    words = [name.split(".") for name in names]
    for count in range(1, max((len(parts) for parts in words), default=1)):
        brief = [" ".join(parts[-count:]) for parts in words]
        if len(set(brief)) == len(names):
            return brief
    return [" ".join(parts) for parts in words]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
