"""Why a mixture answers as it does: the weights of its experts for one prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from loramix.data.conversations import Conversation, Message
from loramix.mixture.model import MixtureModel


@dataclass(frozen=True)
class Explanation:
    """The experts' weights for one prompt, in the order of `experts`.

    layers: the weights of every layer. mean: over the layers.
    tokens: each token of the prompt with its weights, the mean over layers; empty where the gates
        decide once per prompt.
    """

    prompt: str
    experts: list[str]
    layers: dict[str, list[float]]
    mean: list[float]
    tokens: list[tuple[str, list[float]]]


def explain(
    mixture: MixtureModel,
    text: str | Sequence[Message] | Conversation,
    *,
    task: str | None = None,
) -> Explanation:
    """Return the weights for a prompt, for the input of a task, or for a conversation."""
    inputs = mixture.text_inputs(text, task=task)
    layers: dict[str, list[float]] = {}
    for name, weights_BE in mixture.mean_weights(**inputs).items():
        layers[name] = weights_BE[0].tolist()  # of the only row
    return Explanation(
        prompt=_shown(mixture, text, task),
        experts=mixture.expert_names,
        layers=layers,
        mean=_mean(list(layers.values())),
        tokens=_token_weights(mixture, inputs) if mixture.gate_config.per_token else [],
    )


def _shown(
    mixture: MixtureModel, text: str | Sequence[Message] | Conversation, task: str | None
) -> str:
    if isinstance(text, str):
        return mixture.prompting.render(text, task)
    messages = text.messages if isinstance(text, Conversation) else text
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def _token_weights(
    mixture: MixtureModel, inputs: dict[str, Tensor]
) -> list[tuple[str, list[float]]]:
    """Return each token of the prompt with its weights, the mean over layers."""
    ids = inputs["input_ids"][0]
    layers: list[list[list[float]]] = []
    for weights_BTE in mixture.weights(**inputs).values():
        # An encoder-decoder's decoder layers see no token of the prompt: their T is another.
        if weights_BTE.shape == (1, len(ids), len(mixture.expert_names)):
            layers.append(weights_BTE[0].tolist())
    if not layers:
        return []
    tokens: list[tuple[str, list[float]]] = []
    for token_id, rows in zip(ids.tolist(), zip(*layers, strict=True), strict=True):
        tokens.append((mixture.tokenizer.decode([token_id]), _mean(rows)))
    return tokens


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
