"""A first pass, of the base alone, by which all gates decide together before any expert acts.

Gates that decide one after the other read what the decisions below them have made of a text, so a
wrong one confirms itself. In a first pass nothing has been decided yet, and deep layers, which have
understood more of the request, speak for shallow ones:

    weights = activation(Σ over gates of score_g(context_g) / blocks)     in every layer

A decoder beside an encoder needs no pass: its prompt gates read what the encoder has written.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.context import spread
from loramix.mixture.gate import Evidence
from loramix.mixture.masks import CACHES, Arguments, token_shape
from loramix.mixture.state import in_call

if TYPE_CHECKING:
    from loramix.mixture.call import Call
    from loramix.mixture.layer import MixtureLinear


def decide_together(call: "Call", layers: "Sequence[MixtureLinear]", arguments: Arguments) -> None:
    """Let the gates of these layers, those of the call's stack, decide for all of the call."""
    readers = {layer.name: layer for layer in layers if layer.gate is not None}
    if call.encoder is None:
        found = _read_ahead(call, arguments)
    else:
        found = {name: call.read(layer, call.encoder.mean_B1D) for name, layer in readers.items()}
    evidence, weights = Evidence(), None
    for name, layer in readers.items():
        if name in found:  # a part of the model that this call does not run says nothing
            evidence.blocks = layer.block + 1
            gate, (context, mask) = layer.group_gate, found[name]
            weights = gate(context.to(gate.prior.device), mask, evidence)
    if weights is None:
        return
    if call.segments_BT is not None:
        weights = spread(weights, call.segments_BT)
    call.decided.update({layer.group: weights for layer in layers})


def decide_packed(call: "Call", layers: "Sequence[MixtureLinear]", arguments: Arguments) -> None:
    """Let the gates decide together for the requests that begin in a pass of continuous batching.

    The pass runs twice. What the base alone writes into the cache, and predicts for the requests
    that go on, is written and predicted anew by the mixture.
    """
    requests = call.requests
    assert requests is not None
    if requests.beginning:
        prompt_1T, number_1T = requests.prompts()
        first = replace(call, mask_BT=prompt_1T, segments_BT=number_1T, requests=None, decided={})
        decide_together(first, layers, arguments)
        requests.keep_together(next(iter(first.decided.values())))
    together_1TE = requests.kept_together()
    call.decided.update({layer.group: together_1TE for layer in layers})


def _read_ahead(call: "Call", arguments: Arguments) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what gates read while the base acts alone, by reader: contexts and their masks.

    The pass has no gradients; what gates learn to read of it has.
    """
    if torch.compiler.is_compiling():
        raise MixtureError(
            "gates with first_pass run the base before the mixture, which cannot be compiled; read "
            "prompts uncompiled, or build the mixture with first_pass=False (loramix mix "
            "--no-first-pass)"
        )
    first = replace(call, first={}, learning=torch.is_grad_enabled(), decided={})
    with in_call(first), torch.no_grad():
        call.stack.forward(**_alone(call.stack, arguments))
    assert first.first is not None
    return first.first


def _alone(stack: nn.Module, arguments: Arguments) -> dict[str, object]:
    """Return the arguments of a pass that fills no cache and predicts next to nothing.

    One of continuous batching keeps its own: its attention works on its cache alone.
    """
    if arguments.get("read_index") is not None:
        return {name: each for name, each in arguments.items() if name != "prompt_mask"}
    parameters = inspect.signature(stack.forward).parameters
    open_ended = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    left_out = {*CACHES, "prompt_mask", "labels"}
    kept = {
        name: value
        for name, value in arguments.items()
        if name not in left_out and (open_ended or name in parameters)
    }
    for name, value in (("use_cache", False), ("logits_to_keep", 1)):
        if name in parameters:
            kept[name] = value
    tokens = token_shape(arguments)[1]
    if (mask := kept.get("attention_mask")) is not None:
        kept["attention_mask"] = _of_tokens(mask, tokens)
    return kept


def _of_tokens(mask: object, tokens: int) -> object:
    """Return a mask without the places that a static cache has beyond the tokens."""
    if isinstance(mask, Mapping):
        return {kind: _of_tokens(each, tokens) for kind, each in mask.items()}
    return mask[..., :tokens] if isinstance(mask, Tensor) and mask.dim() == 4 else mask
