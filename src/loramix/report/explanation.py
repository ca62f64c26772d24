"""The page of an explanation: the weights of the experts for one prompt."""

from collections.abc import Mapping, Sequence

from loramix.report.page import fill_template
from loramix.report.plots import EXPERT_COLOURS


def explanation_page(
    prompt: str,
    experts: Sequence[str],
    *,
    layers: Mapping[str, Sequence[float]],
    mean: Sequence[float],
    tokens: Sequence[tuple[str, Sequence[float]]],
) -> str:
    """Return one HTML file that needs no other file; all text is escaped.

    layers: the weights of every layer, in the order of `experts`. mean: over the layers.
    tokens: each token of the prompt with its weights; empty where gates decide once per prompt.
    """
    return fill_template(
        "explanation.html",
        prompt=prompt,
        experts=experts,
        layers=layers,
        mean=mean,
        tokens=tokens,
        colours=[EXPERT_COLOURS[index % len(EXPERT_COLOURS)] for index in range(len(experts))],
        leader=_leader,
    )


def _leader(weights: Sequence[float]) -> tuple[int, int]:
    """Return the expert with the largest weight, and its lead: 0 (all even) to 100 percent."""
    if len(weights) == 1:
        return 0, 100
    largest = max(weights)
    total = sum(map(abs, weights)) or 1.0  # a base slot may leave 0 to all
    even = 1 / len(weights)
    lead = (largest / total - even) / (1 - even)
    return list(weights).index(largest), round(100 * max(0.0, min(1.0, lead)))
