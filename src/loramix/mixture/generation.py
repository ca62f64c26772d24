"""What is settled before a mixture generates: whether its gates can decide, and whether to fold
their decisions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import GenerationConfig

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.call import thread

if TYPE_CHECKING:
    from loramix.mixture.model import MixtureModel

WORTH = 16  # new tokens from which on folding pays, by `benchmarks/speed.py`


def refuse_generation(config: GateConfig, inputs: Mapping[str, object]) -> None:
    """Raise MixtureError if these gates cannot decide in generation with these inputs as they do in
    training.
    """
    if config.context == "reference":
        raise MixtureError(
            "the reference gate averages over the whole target, which does not exist yet during "
            "generation; "
            "train a gate with context='prompt' to generate"
        )
    chunk = inputs.get("prefill_chunk_size")
    if chunk is None:
        chunk = getattr(inputs.get("generation_config"), "prefill_chunk_size", None)
    if chunk is not None and config.context == "prompt":
        raise MixtureError(
            "a prompt gate needs the whole prompt at once; generate without prefill_chunk_size"
        )


def folds(
    mixture: "MixtureModel", inputs: Mapping[str, object], prompt: object, wanted: bool | None
) -> bool:
    """Return whether to fold in a generation with these inputs; None as `wanted`: if it can be done
    and pays.

    Raises MixtureError if folding is wanted and there are weights that differ between rows or
    tokens.
    """
    if wanted is False:
        return False
    obstacle = _obstacle(mixture, prompt)
    if wanted and obstacle:
        raise MixtureError(
            f"{obstacle}, so their updates cannot be folded into one weight; generate with "
            "fold=None"
        )
    return not obstacle and bool(wanted or _most_new_tokens(mixture, inputs, prompt) >= WORTH)


def _obstacle(mixture: "MixtureModel", prompt: object) -> str | None:
    if thread.here.fixed is not None:
        return (
            None
            if thread.here.fixed.rows == 1
            else f"there are fixed weights for {thread.here.fixed.rows} rows"
        )
    if mixture.gate_config.context != "prompt":
        return f"the weights of a '{mixture.gate_config.context}' gate change from token to token"
    if not isinstance(prompt, Tensor) or len(prompt) != 1:
        return "every prompt has weights of its own"
    return None


def _most_new_tokens(mixture: "MixtureModel", inputs: Mapping[str, object], prompt: object) -> int:
    """Return how many tokens this generation may make at most, as transformers finds it."""
    given = inputs.get("generation_config")
    config = given if isinstance(given, GenerationConfig) else mixture.base.generation_config
    new, whole = (
        inputs.get(name) or getattr(config, name, None) for name in ("max_new_tokens", "max_length")
    )
    if isinstance(new, int):
        return new
    counted = (
        prompt.shape[1]
        if isinstance(prompt, Tensor) and not mixture.config.is_encoder_decoder
        else 0
    )
    return whole - counted if isinstance(whole, int) else GenerationConfig().max_length or 20
