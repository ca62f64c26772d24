"""Which tokens the gates of a call may read, and how their decisions travel with a cache.

`attach` puts hooks around the stacks of a base model. They see the arguments of every call as they
are really passed, in training, in scoring and in each step of generation, so that masks and encoder
outputs are right by construction.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.cache import carried_by, carry
from loramix.mixture.call import Call, Memory, close_call, open_call, thread
from loramix.mixture.gate import masked_mean

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Arguments = dict[str, object]
MakeCall = Callable[[nn.Module, Arguments, GateConfig], Call]


def attach(base: "PreTrainedModel", config: GateConfig) -> None:
    """Open a call around every stack of `base`: encoder and decoder, or the whole of a decoder-only
    model.
    """
    if not base.config.is_encoder_decoder:
        _surround(base, _causal_call, config)
        return
    base.register_forward_pre_hook(_check_seq2seq, with_kwargs=True)
    _surround(base.get_encoder(), _encoder_call, config)
    _surround(base.get_decoder(), _decoder_call, config)


def before_labels(labels: Int[Tensor, "B L"], tokens: int) -> Bool[Tensor, "B T"]:
    """Mark what precedes the first label that counts; labels may cover the last columns of the
    `tokens` alone.
    """
    missing = tokens - labels.shape[1]
    if missing < 0:
        raise MixtureError(f"there are {labels.shape[1]} labels for {tokens} tokens")
    counted_BT = nn.functional.pad(labels != -100, (missing, 0))
    return counted_BT.cumsum(1) == 0


def _surround(stack: nn.Module, make_call: MakeCall, config: GateConfig) -> None:
    names = [
        name
        for name, each in inspect.signature(stack.forward).parameters.items()
        if each.kind != each.VAR_KEYWORD
    ]

    def before(
        module: nn.Module, args: tuple[object, ...], kwargs: Arguments
    ) -> tuple[tuple[object, ...], Arguments]:
        prompt_mask = kwargs.pop("prompt_mask", None)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs, "prompt_mask": prompt_mask}
        if thread.here.fixed is not None:
            call = _fixed(module, arguments)
        elif _begins(arguments):
            call = make_call(module, arguments, config)
        else:
            call = _continued(module, arguments, config)
        open_call(call)
        return args, kwargs

    def after(
        module: nn.Module, args: tuple[object, ...], kwargs: Arguments, output: object
    ) -> None:
        call = close_call(module)
        cache: Cache | None = getattr(output, "past_key_values", None)
        if call is not None and cache is not None and call.fixed is None:
            carry(
                cache,
                call.decided if config.context == "prompt" else {},
                call.states,
                call.updates or {},
            )

    stack.register_forward_pre_hook(before, with_kwargs=True)
    stack.register_forward_hook(after, with_kwargs=True, always_call=True)


def _fixed(stack: nn.Module, arguments: Arguments) -> Call:
    """Return a call at the weights set by hand; in generation, its steps share what is made of
    them.
    """
    fixed = thread.here.fixed
    assert fixed is not None
    if fixed.updates is None or _begins(arguments):
        return Call(stack, None, fixed=fixed)
    updates = fixed.updates.setdefault(len(_tokens(arguments)), {})
    return Call(stack, None, fixed=fixed, updates=updates, folding=thread.here.folding)


def _causal_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    readable_BT = _valid(arguments)
    prompt_mask, labels, length = (
        arguments["prompt_mask"],
        arguments.get("labels"),
        thread.here.prompt_length,
    )
    if config.context != "prompt":
        return Call(stack, readable_BT)
    if isinstance(prompt_mask, Tensor):
        readable_BT = readable_BT & prompt_mask.bool()
    elif isinstance(labels, Tensor):
        readable_BT = readable_BT & before_labels(labels, readable_BT.shape[1])
    elif (
        length is not None
    ):  # without a cache, every step of generation comes with the answer so far
        readable_BT = readable_BT & (
            torch.arange(readable_BT.shape[1], device=readable_BT.device) < length
        )
    return Call(stack, readable_BT)


def _encoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    return Call(stack, _valid(arguments))


def _decoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    return Call(stack, _valid(arguments), _memory(arguments))


def _continued(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    """Return a call that goes on from a filled cache, with what the gates left in it."""
    if config.context == "reference":
        raise MixtureError(
            "the reference gate reads the whole sequence, so it cannot go on from a cache"
        )
    carried, rows = carried_by(arguments["past_key_values"]), len(_tokens(arguments))
    if carried is None:
        raise MixtureError(
            "this cache was not filled by this mixture's gates; start from an empty one, uncompiled"
        )
    if carried.rows not in (None, rows):
        raise MixtureError(
            f"the cache holds what gates decided for {carried.rows} rows, but this call has "
            f"{rows}; "
            "start from an empty cache, or use one with as many rows as the call"
        )
    mask_BT = _valid(arguments) if config.per_token else None
    keeps = config.context == "prompt" and not torch.is_grad_enabled()
    return Call(
        stack,
        mask_BT,
        _memory(arguments) if config.per_token else None,
        decided=carried.decided if keeps else dict(carried.decided),
        states=dict(carried.states),
        updates=carried.updates if keeps else None,
        folding=thread.here.folding,
    )


def _memory(arguments: Arguments) -> Memory | None:
    hidden_BSD, mask = (
        arguments.get("encoder_hidden_states"),
        arguments.get("encoder_attention_mask"),
    )
    if not isinstance(hidden_BSD, Tensor):
        return None
    ones_BS = torch.ones(hidden_BSD.shape[:2], dtype=torch.bool, device=hidden_BSD.device)
    mask_BS = _of_last_query(mask) if isinstance(mask, Tensor) else ones_BS
    mean_B1D = masked_mean(hidden_BSD, mask_BS)
    return Memory(
        hidden_BSD, mask_BS, mean_B1D, torch.ones_like(mean_B1D[..., 0], dtype=torch.bool)
    )


def _check_seq2seq(
    module: nn.Module, args: tuple[object, ...], kwargs: Arguments
) -> tuple[tuple[object, ...], Arguments]:
    """Refuse a prompt mask, and let the decoder know which targets are padding: the reference gate
    averages them.
    """
    if "prompt_mask" in kwargs:
        raise MixtureError(
            "the prompt of an encoder-decoder model is its encoder's input; prompt_mask does not "
            "apply"
        )
    labels = kwargs.get("labels")
    if isinstance(labels, Tensor):
        kwargs.setdefault("decoder_attention_mask", (labels != -100).long())
    return args, kwargs


def _begins(arguments: Arguments) -> bool:
    """Return whether nothing lies in a cache yet; no first pass with a static cache can be
    compiled.
    """
    length = _cache_length(arguments)
    return not (isinstance(length, Tensor) and torch.compiler.is_compiling()) and int(length) == 0


def _cache_length(arguments: Arguments) -> int | Tensor:
    """Return how many tokens lie in the cache: of a static one a tensor, as code would be compiled
    for each number.
    """
    cache = arguments.get("past_key_values")
    length: int | Tensor = 0 if cache is None else cache.get_seq_length()  # type: ignore[attr-defined]
    return length


def _tokens(arguments: Arguments) -> Tensor:
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise MixtureError("a mixture needs input_ids or inputs_embeds")
    return tokens


def _valid(arguments: Arguments) -> Bool[Tensor, "B T"]:
    """Return which tokens of the stack's own input are real, from its attention mask; all if there
    is none.
    """
    tokens, mask = _tokens(arguments), arguments.get("attention_mask")
    rows, length, past = len(tokens), tokens.shape[1], _cache_length(arguments)
    if isinstance(mask, dict):  # one mask for each kind of attention layer
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=tokens.device)
    if not isinstance(mask, Tensor):
        raise MixtureError(
            f"a gate cannot read an attention mask of type {type(mask).__name__}; pass a (B, T) "
            "tensor"
        )
    if not torch.compiler.is_compiling() and mask.shape[-1] < past + length:
        raise MixtureError(
            f"the attention mask covers {mask.shape[-1]} tokens, but {int(past)} lie in the cache "
            f"and {length} are new"
        )
    places_T = torch.arange(length, device=mask.device) + past
    if mask.dim() == 2:
        return mask[:, places_T].bool()
    queries = mask[:, 0].expand(-1, length, -1)
    itself = queries.gather(-1, places_T[None, :, None].expand(len(queries), -1, 1))[
        ..., 0
    ]  # may it attend to itself?
    return (itself if itself.dtype == torch.bool else itself >= 0).expand(rows, -1)


def _of_last_query(mask: Tensor) -> Bool[Tensor, "B S"]:
    """Return a (B, S) mask as booleans; of a (B, 1, Q, S) one, what its last query may attend
    to.
    """
    if mask.dim() == 2:
        return mask.bool()
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last >= 0
