"""Which tokens the gates of a call may read, and how their decisions travel with a cache.

`attach` puts hooks around the stacks of a base model. They see the arguments of every call as they are really passed,
in training, in scoring and in each step of generation, so that masks and encoder outputs are right by construction.
"""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loramix.call import Call, Memory, close_call, open_call
from loramix.errors import MixtureError
from loramix.gate import GateConfig, masked_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arguments = dict[str, object]
MakeCall = Callable[[nn.Module, Arguments, GateConfig], Call]

fixed_weights: ContextVar[Float[Tensor, " E"] | None] = ContextVar("loramix_fixed", default=None)
_ON_CACHE = "loramix_weights"  # the attribute of a cache that carries the weights decided in its prefill


def attach(base: "PreTrainedModel", config: GateConfig) -> None:
    """Open a call around every stack of `base`: encoder and decoder, or the whole of a decoder-only model."""
    if not base.config.is_encoder_decoder:
        _surround(base, _causal_call, config)
        return
    base.register_forward_pre_hook(_check_seq2seq, with_kwargs=True)
    _surround(base.get_encoder(), _encoder_call, config)
    _surround(base.get_decoder(), _decoder_call, config)


def before_labels(labels: Int[Tensor, "B L"], tokens: int) -> Bool[Tensor, "B T"]:
    """Mark what precedes the first label that counts; labels may cover the last columns of the `tokens` alone."""
    missing = tokens - labels.shape[1]
    if missing < 0:
        raise MixtureError(f"there are {labels.shape[1]} labels for {tokens} tokens")
    counted_BT = nn.functional.pad(labels != -100, (missing, 0))
    return counted_BT.cumsum(1) == 0


def _surround(stack: nn.Module, make_call: MakeCall, config: GateConfig) -> None:
    parameters = inspect.signature(stack.forward)

    def before(module: nn.Module, args: tuple[object, ...], kwargs: Arguments) -> tuple[tuple[object, ...], Arguments]:
        prompt_mask = kwargs.pop("prompt_mask", None)
        bound = parameters.bind_partial(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound, "prompt_mask": prompt_mask}
        fixed_E = fixed_weights.get()
        if fixed_E is None:
            _check_cache(arguments, config)
        call = make_call(module, arguments, config)
        call.fixed_E = fixed_E
        open_call(call)
        return args, kwargs

    def after(module: nn.Module, args: tuple[object, ...], kwargs: Arguments, output: object) -> None:
        call = close_call(module)
        cache = getattr(output, "past_key_values", None)
        if call is not None and cache is not None and call.fixed_E is None:
            setattr(cache, _ON_CACHE, call.decided)

    stack.register_forward_pre_hook(before, with_kwargs=True)
    stack.register_forward_hook(after, with_kwargs=True, always_call=True)


def _causal_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    given = _given(arguments)
    if given is not None or fixed_weights.get() is not None:
        return Call(stack, None, given=given)
    readable_BT = _valid(arguments)
    prompt_mask, labels = arguments["prompt_mask"], arguments.get("labels")
    if config.context == "reference":
        return Call(stack, readable_BT)
    if isinstance(prompt_mask, Tensor):
        readable_BT = readable_BT & prompt_mask.bool()
    elif isinstance(labels, Tensor):
        readable_BT = readable_BT & before_labels(labels, readable_BT.shape[1])
    return Call(stack, readable_BT)


def _encoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    return Call(stack, _valid(arguments))


def _decoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    given = _given(arguments)
    hidden_BSD, mask = arguments.get("encoder_hidden_states"), arguments.get("encoder_attention_mask")
    if given is not None or not isinstance(hidden_BSD, Tensor):
        return Call(stack, None, given=given)
    ones_BS = torch.ones(hidden_BSD.shape[:2], dtype=torch.bool, device=hidden_BSD.device)
    mask_BS = _as_2d(mask) if isinstance(mask, Tensor) else ones_BS
    return Call(stack, _valid(arguments), Memory(hidden_BSD, mask_BS, masked_mean(hidden_BSD, mask_BS)[:, None]))


def _check_seq2seq(
    module: nn.Module, args: tuple[object, ...], kwargs: Arguments
) -> tuple[tuple[object, ...], Arguments]:
    """Refuse a prompt mask, and let the decoder know which targets are padding: the reference gate averages them."""
    if "prompt_mask" in kwargs:
        raise MixtureError("the prompt of an encoder-decoder model is its encoder's input; prompt_mask does not apply")
    labels = kwargs.get("labels")
    if isinstance(labels, Tensor):
        kwargs.setdefault("decoder_attention_mask", (labels != -100).long())
    return args, kwargs


def _check_cache(arguments: Arguments, config: GateConfig) -> None:
    if _cache_length(arguments) == 0:
        return
    if config.context == "reference":
        raise MixtureError("the reference gate reads the whole sequence, so it cannot go on from a cache")
    if _given(arguments) is None:
        raise MixtureError("this cache was not filled by this mixture's gates; start from an empty one")


def _given(arguments: Arguments) -> dict[str, Tensor] | None:
    """Return the weights that a filled cache carries."""
    if _cache_length(arguments) == 0:
        return None
    given: dict[str, Tensor] | None = getattr(arguments["past_key_values"], _ON_CACHE, None)
    return given


def _cache_length(arguments: Arguments) -> int:
    cache = arguments.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())  # type: ignore[attr-defined]


def _valid(arguments: Arguments) -> Bool[Tensor, "B T"]:
    """Return which tokens of the stack's own input are real, from its attention mask; all if there is none."""
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise MixtureError("a mixture needs input_ids or inputs_embeds")
    mask = arguments.get("attention_mask")
    if isinstance(mask, dict):  # one mask for each kind of attention layer
        mask = mask.get("full_attention")
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if not isinstance(mask, Tensor):
        raise MixtureError(
            f"a prompt gate cannot read an attention mask of type {type(mask).__name__}; pass a (B, T) tensor"
        )
    return _as_2d(mask)[:, : tokens.shape[1]]


def _as_2d(mask: Tensor) -> Bool[Tensor, "B T"]:
    """Return a (B, T) mask as booleans; of a (B, 1, Q, T) one, what its last query may attend to."""
    if mask.dim() == 2:
        return mask.bool()
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last >= 0
