"""Why a mixture answers as it does: the weights of its experts for one prompt, as data and as a
page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loramix.report.page import page
from loramix.report.plots import EXPERT_COLOURS

if TYPE_CHECKING:
    from loramix.mixture.model import MixtureModel


@dataclass(frozen=True)
class Explanation:
    """The experts' weights for one prompt, in the experts' order: of every layer, and their mean.

    tokens: each token of the prompt with its weights, the mean over layers, where the gates decide
        for every token.
    """

    prompt: str
    experts: list[str]
    layers: dict[str, list[float]]
    mean: list[float]
    tokens: list[tuple[str, list[float]]]


def explain(mixture: "MixtureModel", text: str, *, task: str | None = None) -> Explanation:
    """Return the weights for a prompt, or for the input of a task."""
    inputs = mixture.text_inputs(text, task=task)
    layers = {
        name: weights_BE[0].tolist() for name, weights_BE in mixture.mean_weights(**inputs).items()
    }
    tokens: list[tuple[str, list[float]]] = []
    if mixture.gate_config.per_token:
        ids = inputs["input_ids"][0]
        shape = (1, len(ids), len(mixture.expert_names))
        read = [
            weights_BTE[0]
            for weights_BTE in mixture.weights(**inputs).values()
            if weights_BTE.shape == shape
        ]
        means_TE = [
            _mean(column)
            for column in zip(*(weights_TE.tolist() for weights_TE in read), strict=True)
        ]
        tokens = [
            (mixture.tokenizer.decode([index]), mean)
            for index, mean in zip(ids.tolist(), means_TE, strict=True)
        ]
    prompt = mixture.prompting.render(text, task)
    return Explanation(prompt, mixture.expert_names, layers, _mean(list(layers.values())), tokens)


def explanation_page(explanation: Explanation) -> str:
    """Return one HTML page that needs nothing beside itself; every text is escaped."""
    colours = [
        EXPERT_COLOURS[index % len(EXPERT_COLOURS)] for index in range(len(explanation.experts))
    ]
    return page("explanation.html", explanation=explanation, colours=colours, leader=_leader)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _leader(weights: Sequence[float]) -> tuple[int, int]:
    """Return the expert with the largest weight, and how far it stands out: 0 (even) to 100
    percent.
    """
    largest, total = max(weights), sum(map(abs, weights)) or 1.0
    even = 1 / len(weights)
    share = 1.0 if len(weights) == 1 else (largest / total - even) / (1 - even)
    return list(weights).index(largest), round(100 * max(0.0, min(1.0, share)))
