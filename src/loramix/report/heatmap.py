"""Gate weights as heat maps: blocks down, projections across, one map per task and expert."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loramix.report.content import WeightRow


@dataclass(frozen=True)
class WeightMap:
    """The weights of one expert on one task's prompts.

    rows: the label of a block, then a weight per projection, None where the block lacks it.
    """

    task: str
    expert: str
    rows: list[tuple[str, list[float | None]]]


@dataclass(frozen=True)
class Heatmap:
    """Maps that share their columns; `even` is the weight of each expert if none is preferred."""

    columns: list[str]
    maps: list[WeightMap]
    even: float

    def strength(self, weight: float) -> int:
        """Return how far a weight is from even, in percent of the way to 0 (negative) or to 1."""
        room = self.even if weight < self.even else 1 - self.even
        return round(100 * max(-1.0, min(1.0, (weight - self.even) / room))) if room else 0


def weight_heatmap(rows: Sequence[WeightRow]) -> Heatmap:
    """Return the heat map of `rows`, in their order.

    Of two experts whose weights sum to 1, only the first is shown: the other follows from it.
    """
    tasks, experts = _unique(row.task for row in rows), _unique(row.expert for row in rows)
    shown = experts[:1] if len(experts) == 2 and _sum_to_one(rows) else experts
    cells = _cells(_unique(row.layer for row in rows))
    blocks = _unique(block for block, _ in cells.values())
    projections = _unique(projection for _, projection in cells.values())
    labels = _block_labels(blocks)
    weights = {(row.task, row.expert, *cells[row.layer]): row.weight for row in rows}
    maps: list[WeightMap] = []
    for task in tasks:
        for expert in shown:
            lines: list[tuple[str, list[float | None]]] = []
            for block in blocks:
                line = [weights.get((task, expert, block, name)) for name in projections]
                lines.append((labels[block], line))
            maps.append(WeightMap(task, expert, lines))
    return Heatmap(_short(projections), maps, 1 / max(len(experts), 1))


def _sum_to_one(rows: Sequence[WeightRow]) -> bool:
    sums: dict[tuple[str, str], float] = {}
    for row in rows:
        sums[row.task, row.layer] = sums.get((row.task, row.layer), 0.0) + row.weight
    return all(abs(total - 1) < 1e-3 for total in sums.values())


def _cells(layers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the block (row) and projection (column) of every layer.

    Further numbers are left out of the projection (T5 numbers the parts of a block differently in
    encoder and decoder), unless two layers would then share a cell.
    """
    full = {layer: _split(layer) for layer in layers}
    brief: dict[str, tuple[str, str]] = {}
    for layer, (block, projection) in full.items():
        unnumbered = re.sub(r"(^|\.)(layer\.)?\d+(?=\.)", "", projection).lstrip(".")
        brief[layer] = block, unnumbered
    return brief if len(set(brief.values())) == len(layers) else full


def _split(layer: str) -> tuple[str, str]:
    """Split a layer's name after its first number, or before its last word if it has none."""
    # model.layers.0.self_attn.q_proj: model.layers.0 and self_attn.q_proj
    match = re.fullmatch(r"((?:[^.]+\.)*?\d+)\.(.+)", layer)
    if match:
        return match[1], match[2]
    parent, _, name = layer.rpartition(".")
    return parent or name, name


def _block_labels(blocks: Sequence[str]) -> dict[str, str]:
    """Return the blocks' names without the leading words that all share, but with "layers 0"."""
    words = {block: block.split(".") for block in blocks}
    shared = 0
    # The last two words stay: the number, and the word that says what is numbered.
    most = min((len(parts) for parts in words.values()), default=0) - 2
    while shared < most and len({parts[shared] for parts in words.values()}) == 1:
        shared += 1
    return {block: " ".join(parts[shared:]) for block, parts in words.items()}


def _short(names: Sequence[str]) -> list[str]:
    """Return the fewest last words of every name that keep all names distinct."""
    words = [name.split(".") for name in names]
    for count in range(1, max((len(parts) for parts in words), default=1)):
        brief = [" ".join(parts[-count:]) for parts in words]
        if len(set(brief)) == len(names):
            return brief
    return [" ".join(parts) for parts in words]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
