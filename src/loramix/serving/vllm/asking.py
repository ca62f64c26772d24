"""The weights that a request brings: read where it comes in, and again where it is answered.

vLLM carries strings and numbers of a request's own, so they travel as JSON under `loramix`:
`{"weights": {"sql": 0.8}}`.
"""

import json
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from loramix.errors import MixtureError
from loramix.mixture.weights import row_of
from loramix.serving.bodies import MOST_WEIGHT
from loramix.serving.vllm.served import Served

KEY = "loramix"


def by_hand(
    extra: Mapping[str, object] | None, experts: Sequence[str]
) -> Float[Tensor, " E"] | None:
    """Return the weights in a request's `extra_args`; None where the gates decide.

    Raises MixtureError if they are of another form, or name an expert that there is not.
    """
    told = (extra or {}).get(KEY)
    if told is None:
        return None
    try:
        content = json.loads(told) if isinstance(told, str) else told
    except ValueError as error:
        raise MixtureError(f"{KEY}: is no JSON: {error}") from error
    if not isinstance(content, dict) or content.keys() - {"weights"}:
        raise MixtureError(
            f'{KEY}: expected {{"weights": {{EXPERT: NUMBER}}}}, found {told}; what else the '
            "embedded engine takes (task, layers), the vLLM engine does not know"
        )
    weights = content.get("weights")
    if weights is None:
        return None
    if not isinstance(weights, dict) or not all(map(_is_weight, weights.values())):
        raise MixtureError(
            f"{KEY}.weights: expected numbers of at most {MOST_WEIGHT:.0f} by expert, found "
            f"{weights}"
        )
    return row_of(weights, experts)


def _is_weight(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= MOST_WEIGHT  # type: ignore[arg-type]


class Check(LogitsProcessor):  # type: ignore[misc]
    """Refuses requests with impossible weights; logits stay as they are.

    vLLM asks its logits processors about a request's parameters before it is queued, and turns
    their errors into status 400.
    """

    served: Served

    def __init__(self, *args: object) -> None:
        pass

    @classmethod
    def validate_params(cls, sampling_params: object) -> None:
        """Raise ValueError for weights that cannot be used."""
        by_hand(sampling_params.extra_args, cls.served.experts)  # type: ignore[attr-defined]

    def is_argmax_invariant(self) -> bool:
        """Return that greedy answers do not need it."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits."""
        return logits

    def update_state(self, batch_update: object) -> None:
        """Take no note of the batch."""


def __getattr__(name: str) -> type[Check]:
    """Make the check of a served mixture, named as `Served.as_attribute`."""
    globals()[name] = made = type(name, (Check,), {"served": Served.from_attribute(name)})
    return made
