"""Hooks around the stacks of a base model, which open and close the calls of a mixture.

They see the arguments of every call as they are really passed, in training, in scoring and in each
step of generation. Masks and encoder outputs are right by construction, and decisions travel with
the cache that the base returns.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.batching import guard_batching, packed_requests
from loramix.mixture.cache import Carried, carried_by, carry
from loramix.mixture.call import Call, EncoderOutput, close_call, open_call
from loramix.mixture.context import masked_mean
from loramix.mixture.first_pass import decide_packed, decide_together
from loramix.mixture.masks import (
    CACHES,
    Arguments,
    cache_length,
    cache_of,
    last_query,
    prompt_tokens,
    segments,
    token_shape,
    valid_tokens,
)
from loramix.mixture.state import current, in_call
from loramix.mixture.wrapping import mixture_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeCall = Callable[[nn.Module, Arguments, GateConfig], Call]
# The names under which decoders get their encoder's attention mask; the second is FSMT's.
ENCODER_MASKS = ("encoder_attention_mask", "encoder_padding_mask")


def attach(base: "PreTrainedModel", config: GateConfig) -> None:
    """Open a call around every stack: encoder and decoder, or the whole of a decoder-only model."""
    guard_batching(base, config)
    if not base.config.is_encoder_decoder:
        _surround(base, _causal_call, config)
        return
    base.register_forward_pre_hook(_prepare_seq2seq, with_kwargs=True)
    _surround(base.get_encoder(), _encoder_call, config)
    _surround(base.get_decoder(), _decoder_call, config)


def _surround(stack: nn.Module, make_call: MakeCall, config: GateConfig) -> None:
    names = _argument_names(stack)

    def before(
        module: nn.Module, args: tuple[object, ...], kwargs: Arguments
    ) -> tuple[tuple[object, ...], Arguments]:
        prompt_mask = kwargs.pop("prompt_mask", None)  # ours: no base knows it
        named = dict(zip(names, args, strict=False))
        arguments = {**named, **kwargs, "prompt_mask": prompt_mask}
        open_call(_call(module, arguments, config, make_call))
        return args, kwargs

    def after(
        module: nn.Module, args: tuple[object, ...], kwargs: Arguments, output: object
    ) -> None:
        call, cache = close_call(module), _returned_cache(output)
        if cache is None:
            cache = _filled_cache({**dict(zip(names, args, strict=False)), **kwargs})
        if call is None or cache is None:
            return
        decided = call.decided if config.context == "prompt" else {}
        carry(cache, Carried(decided, call.states, call.updates or {}, call.fixed))

    stack.register_forward_pre_hook(before, with_kwargs=True)
    stack.register_forward_hook(after, with_kwargs=True, always_call=True)


class Backbone:
    """The layers of a decoder-only mixture without the language model's head.

    For trainers that compute their loss from the last hidden states, as TRL's do.
    """

    def __init__(self, base: "PreTrainedModel", config: GateConfig) -> None:
        self._stack, self._config = base.base_model, config

    def __getattr__(self, name: str) -> object:
        return getattr(self._stack, name)

    def __call__(
        self,
        *args: object,
        prompt_mask: Tensor | None = None,
        prompt_labels: Tensor | None = None,
        **inputs: object,
    ) -> object:
        """Return what the base's layers return.

        prompt_mask: as in `MixtureModel.forward`; prompt_labels: its `labels`.
        """
        named = dict(zip(_argument_names(self._stack), args, strict=False))
        told = {"prompt_mask": prompt_mask, "labels": prompt_labels}
        call = _call(self._stack, {**named, **inputs, **told}, self._config, _causal_call)
        with in_call(call):
            return self._stack(*args, **inputs)


def leave_labels(
    mixture: nn.Module, args: tuple[object, ...], kwargs: Arguments
) -> tuple[tuple[object, ...], Arguments]:
    """Leave the labels to the backbone where TRL's forward, put in the place of the mixture's own,
    is going to keep them to itself.
    """
    if kwargs.get("fused_lm_head"):
        kwargs = {**kwargs, "prompt_labels": kwargs.get("labels")}
    return args, kwargs


def _argument_names(stack: nn.Module) -> list[str]:
    parameters = inspect.signature(stack.forward).parameters
    return [name for name, each in parameters.items() if each.kind != each.VAR_KEYWORD]


def _call(stack: nn.Module, arguments: Arguments, config: GateConfig, make_call: MakeCall) -> Call:
    """Return the call for these arguments: of packed requests, at fixed weights, a first one, or
    one from a cache.
    """
    requests = packed_requests(config, arguments)
    if requests is not None:
        call = Call(stack, token_shape(arguments), None, requests=requests)
        if config.first_pass:
            decide_packed(call, list(mixture_layers(stack)), arguments)
        return call
    if current().fixed is not None:
        return _fixed(stack, arguments)
    if _begins(arguments):
        call = make_call(stack, arguments, config)
        if config.first_pass:
            decide_together(call, list(mixture_layers(stack)), arguments)
        return call
    return _continued(stack, arguments, config)


def _returned_cache(output: object) -> object | None:
    found: dict[str, object] = {name: getattr(output, name, None) for name in CACHES}
    return cache_of(found)


def _filled_cache(arguments: Arguments) -> object | None:
    """Return the cache that was passed in, if the call has filled it in place.

    BERT's decoders and others fill it but do not return it.
    """
    cache = cache_of(arguments)
    if cache is None or torch.compiler.is_compiling():
        return None
    return cache if int(cache_length(cache)) > 0 else None


def _fixed(stack: nn.Module, arguments: Arguments) -> Call:
    """Return a call at the weights set by hand; in generation its steps share their updates."""
    state = current()
    fixed = state.fixed
    assert fixed is not None
    shape, begins = token_shape(arguments), _begins(arguments)
    if not begins:
        carried = carried_by(cache_of(arguments))
        if carried is None or not fixed.same_as(carried.fixed):
            raise MixtureError(
                "this cache was filled at other weights than those that are set by hand now; start "
                "from an empty cache"
            )
    if fixed.updates is None or begins:
        return Call(stack, shape, None, fixed=fixed)
    updates = fixed.updates.setdefault(shape[0], {})
    return Call(stack, shape, None, fixed=fixed, updates=updates, folding=state.folding)


def _causal_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    readable_BT = valid_tokens(arguments)
    segments_BT = segments(arguments, readable_BT, stack)
    if config.context == "prompt":
        readable_BT = prompt_tokens(arguments, readable_BT, segments_BT)
    return Call(stack, token_shape(arguments), readable_BT, segments_BT)


def _encoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    return Call(stack, token_shape(arguments), valid_tokens(arguments))


def _decoder_call(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    shape, mask_BT = token_shape(arguments), valid_tokens(arguments)
    return Call(stack, shape, mask_BT, encoder=_encoder_output(arguments))


def _continued(stack: nn.Module, arguments: Arguments, config: GateConfig) -> Call:
    """Return a call that goes on from a filled cache, with what the gates left in it."""
    if config.context == "reference":
        raise MixtureError(
            "the reference gate reads the whole sequence, so it cannot go on from a cache"
        )
    carried, shape = carried_by(cache_of(arguments)), token_shape(arguments)
    if carried is None or carried.fixed is not None:
        filled = "at weights set by hand" if carried else "without this mixture's gates"
        raise MixtureError(
            f"this cache was filled {filled}, so it does not hold what they decided; start from an "
            "empty one, uncompiled"
        )
    if carried.rows not in (None, shape[0]):
        raise MixtureError(
            f"the cache holds what gates decided for {carried.rows} rows, but this call has "
            f"{shape[0]}; start from an empty cache, or use one with as many rows as the call"
        )
    prompt_mask = arguments["prompt_mask"]
    if config.context == "prompt" and isinstance(prompt_mask, Tensor) and bool(prompt_mask.any()):
        raise MixtureError(
            "the gates have decided from the part of the prompt that is in the cache, and cannot "
            "read more of it: what the cache holds depends on their decision. Pass the whole "
            "prompt at once, without past_key_values"
        )
    mask_BT = valid_tokens(arguments) if config.per_token else None
    encoder = _encoder_output(arguments) if config.per_token else None
    keeps = config.context == "prompt" and not torch.is_grad_enabled()
    return Call(
        stack,
        shape,
        mask_BT,
        encoder=encoder,
        decided=carried.decided if keeps else dict(carried.decided),
        states=dict(carried.states),
        updates=carried.updates if keeps else None,
        folding=current().folding,
    )


def _encoder_output(arguments: Arguments) -> EncoderOutput | None:
    hidden_BSD = arguments.get("encoder_hidden_states")
    mask = next((arguments[name] for name in ENCODER_MASKS if name in arguments), None)
    if not isinstance(hidden_BSD, Tensor):
        return None
    if isinstance(mask, Tensor):
        mask_BS = last_query(mask)
    else:
        mask_BS = torch.ones(hidden_BSD.shape[:2], dtype=torch.bool, device=hidden_BSD.device)
    mean_B1D = masked_mean(hidden_BSD, mask_BS)
    one_B1 = torch.ones_like(mean_B1D[..., 0], dtype=torch.bool)
    return EncoderOutput(hidden_BSD, mask_BS, mean_B1D, one_B1)


def _prepare_seq2seq(
    module: nn.Module, args: tuple[object, ...], kwargs: Arguments
) -> tuple[tuple[object, ...], Arguments]:
    """Refuse a prompt mask, and tell the decoder which targets are padding.

    The reference gate averages them, and the decoder's inputs are made from the labels.
    """
    if "prompt_mask" in kwargs:
        raise MixtureError(
            "the prompt of an encoder-decoder model is its encoder's input; "
            "prompt_mask does not apply"
        )
    labels = kwargs.get("labels")
    if isinstance(labels, Tensor):
        kwargs.setdefault("decoder_attention_mask", (labels != -100).long())
    return args, kwargs


def _begins(arguments: Arguments) -> bool:
    """Return whether nothing lies in a cache yet.

    Compiled code takes a static cache as filled: its length is a tensor, whose value would be read
    on the host at every step. So no first pass with a static cache can be compiled.
    """
    cache = cache_of(arguments)
    if carried_by(cache) is not None:  # the caches of state-space models have no length
        return False
    length = cache_length(cache)
    return not (isinstance(length, Tensor) and torch.compiler.is_compiling()) and int(length) == 0
