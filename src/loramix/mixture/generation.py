"""What is settled before a mixture generates: whether its gates can decide, and whether to fold."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import GenerationConfig

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.masks import cache_length, cache_of
from loramix.mixture.state import current

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLD_FROM = 16  # new tokens from which on folding pays, by `benchmarks/speed.py`


def prompt_of(inputs: Mapping[str, object]) -> Tensor | None:
    """Return the prompt among the arguments of `generate`."""
    for name in ("input_ids", "inputs", "inputs_embeds"):
        prompt = inputs.get(name)
        if isinstance(prompt, Tensor):
            return prompt
    return None


def refuse_generation(config: GateConfig, inputs: Mapping[str, object]) -> None:
    """Raise MixtureError if these gates cannot decide in generation as they do in training."""
    if config.context == "reference":
        raise MixtureError(
            "the reference gate averages over the whole target, which does not exist yet during "
            "generation; train a gate with context='prompt' to generate"
        )
    if config.context != "prompt":
        return
    chunk = inputs.get("prefill_chunk_size")
    if chunk is None:
        chunk = getattr(inputs.get("generation_config"), "prefill_chunk_size", None)
    if chunk is not None:
        raise MixtureError(
            "a prompt gate needs the whole prompt at once; generate without prefill_chunk_size"
        )
    length = int(cache_length(cache_of(inputs)))
    if length:
        raise MixtureError(
            f"the cache holds {length} tokens that were read before the rest of this prompt, at "
            "weights that were decided without it. A prompt gate reads the whole prompt, the "
            "earlier turns of a chat included: generate with the whole sequence as input_ids and "
            "without past_key_values. Gates with context='running' or 'token' go on from a cache"
        )


def folds(
    config: GateConfig,
    base: "PreTrainedModel",
    inputs: Mapping[str, object],
    wanted: bool | None,
) -> bool:
    """Return whether to fold in a generation with these inputs.

    wanted: None stands for "if it can be done, and the answer may be long enough to pay for it".

    Raises MixtureError if folding is wanted and weights differ between rows or tokens.
    """
    if wanted is False:
        return False
    prompt = prompt_of(inputs)
    obstacle = _obstacle(config, prompt)
    if wanted and obstacle:
        raise MixtureError(
            f"{obstacle}, so their updates cannot be folded into one weight; "
            "generate with fold=None"
        )
    return not obstacle and bool(wanted or _most_new_tokens(base, inputs, prompt) >= FOLD_FROM)


def _obstacle(config: GateConfig, prompt: Tensor | None) -> str | None:
    """Return what keeps updates from being folded, in words."""
    fixed = current().fixed
    if fixed is not None:
        return None if fixed.rows == 1 else f"there are fixed weights for {fixed.rows} rows"
    if config.context != "prompt":
        return f"the weights of a '{config.context}' gate change from token to token"
    if prompt is None or len(prompt) != 1:
        return "every prompt has weights of its own"
    return None


def _most_new_tokens(
    base: "PreTrainedModel", inputs: Mapping[str, object], prompt: Tensor | None
) -> int:
    """Return how many tokens this generation may make at most, as transformers finds it."""
    given = inputs.get("generation_config")
    config = given if isinstance(given, GenerationConfig) else base.generation_config
    new = inputs.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    if isinstance(new, int):
        return new
    whole = inputs.get("max_length") or getattr(config, "max_length", None)
    counted = prompt.shape[1] if prompt is not None and not base.config.is_encoder_decoder else 0
    return whole - counted if isinstance(whole, int) else GenerationConfig().max_length or 20
