"""How a base calls its linear layers: in which order, and with tokens in which form.

Most layers read (rows, tokens, width). Some read all tokens in one list (OPT's `fc1`, the shared
experts of mixture-of-experts layers), some read (tokens, rows, width). Which it is, and the order
of the calls, is found by calling the base with a few tokens before any layer is replaced: both
differ between architectures in ways that no table of names keeps up with.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.linear import input_device, linear_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import ModelOutput

Form = Literal["rows", "flat", "tokens-first", "flat-tokens-first", "one-head"]
_CACHES = ("past_key_values", "cache_params")
_ROWS, _PROMPT, _TARGET = 2, 5, 4  # of the trial; different, so that shapes tell them apart


def to_rows(x: Float[Tensor, "*tokens D"], form: Form, shape: tuple[int, int]) -> Tensor:
    """Return a layer's input as (rows, tokens, width).

    shape: (rows, tokens) of the stack.
    """
    rows = shape[0]
    match form:
        case "rows":
            return x
        case "flat":
            return x.view(rows, -1, x.shape[-1])
        case "tokens-first":
            return x.transpose(0, 1)
        case "flat-tokens-first":
            return x.view(-1, rows, x.shape[-1]).transpose(0, 1)
        case "one-head":
            return x.squeeze(1)


def from_rows(x_BTD: Float[Tensor, "B T D"], form: Form) -> Float[Tensor, "*tokens D"]:
    """Return (rows, tokens, width) in the form that a layer's input had."""
    match form:
        case "rows":
            return x_BTD
        case "flat":
            return x_BTD.flatten(0, 1)
        case "tokens-first":
            return x_BTD.transpose(0, 1)
        case "flat-tokens-first":
            return x_BTD.transpose(0, 1).flatten(0, 1)
        case "one-head":
            return x_BTD.unsqueeze(1)


@dataclass(frozen=True)
class LayerCall:
    """How the base calls one linear layer.

    order: among all linear layers, by their first call. source: equal for layers that read the
    very same tensor. form: None where the layer reads something else than all tokens.
    found: what it reads, in words. rereads: whether it reads earlier tokens again at each cached
    step, as layers do that unfold the compressed keys and values of latent attention. remade:
    whether a decoder layer reads the encoder's output as another tensor than the decoder was given.
    """

    order: int
    source: int
    form: Form | None
    found: str
    rereads: bool = False
    remade: bool = False


@dataclass(frozen=True)
class BaseCalls:
    """How a base calls its linear layers, by name, and the state that it carries beside a cache.

    states: names of outputs that the next step takes as inputs and that are no cache (RWKV's
    `state`, XLNet's `mems`).
    """

    layers: dict[str, LayerCall]
    states: tuple[str, ...]


@torch.no_grad()
def observe(base: "PreTrainedModel") -> BaseCalls | None:
    """Call `base` with a few tokens and return how it calls its layers; None on the meta device.

    Raises MixtureError if the model cannot be called with tokens alone.
    """
    if any(parameter.is_meta for parameter in base.parameters()):
        return None
    first, second, last, step = _Trial(base), _Trial(base), _Trial(base), _Trial(base)
    modes = {module: module.training for module in base.modules()}
    base.eval()  # dropout would change both rows
    try:
        output = first.run(changed=False)
        second.run(changed=True)
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            last.run(changed=False, logits_to_keep=1)  # as in generation
        step.go_on(output)
    except MixtureError:
        raise
    except Exception as error:  # whatever a base raises that needs more than tokens
        raise MixtureError(
            f"{type(base).__name__} cannot be called with tokens alone, so the form in which its "
            f"layers read them is unknown: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    layers, decoder = {}, _decoder_layers(base)
    for order, (name, read) in enumerate(first.read.items()):
        form = _form(read.values, second.read[name].values) if name in second.read else None
        shape = " × ".join(map(str, read.values.shape))
        found = f"an input of shape {shape}"
        if name in last.read and last.read[name].values.shape != read.values.shape:
            form, found = None, "the last tokens alone in generation (logits_to_keep)"
        if name in first.returns_more:
            form, found = None, "tokens to route (it returns more than a product)"
        if name in first.varied:
            form, found = None, "inputs of several shapes in one pass"
        positions = step.read[name].values[..., 0].numel() if name in step.read else 0
        layers[name] = LayerCall(
            order,
            read.source,
            form,
            found,
            rereads=positions > _ROWS,
            remade=name in decoder and first.remakes_encoder_output(name, output),
        )
    return BaseCalls(layers, _states(base, output))


@dataclass(frozen=True)
class _Read:
    """The first input of a layer in a trial."""

    values: Tensor  # a copy, as the base may write to its own
    source: int


class _Trial:
    """One call of a base, in which every linear layer notes its first input."""

    def __init__(self, base: "PreTrainedModel") -> None:
        self.base = base
        self.read: dict[str, _Read] = {}
        self.returns_more: set[str] = set()  # than one tensor
        self.varied: set[str] = set()  # layers that read inputs of several shapes
        self._inputs: list[Tensor] = []  # kept, as a freed tensor's identity is given to another

    def run(self, *, changed: bool, **more: object) -> "ModelOutput":
        """Call the base, the second row with other tokens if `changed`, and return its output.

        more: further arguments of the call.
        """
        with self._watching():
            output: ModelOutput = self.base(**self._arguments(changed=changed), **more)
        return output

    def go_on(self, output: "ModelOutput") -> None:
        """Call the base for one more token, from the cache that it returned, if it did."""
        cache = getattr(output, "past_key_values", None)
        if cache is None or self.base.config.is_encoder_decoder:
            return
        token = _tokens(self.base, 1, changed=False).to(input_device(self.base))
        mask = token.new_ones(_ROWS, _PROMPT + 1)
        with self._watching():
            self.base(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)

    def remakes_encoder_output(self, name: str, output: "ModelOutput") -> bool:
        """Return whether a decoder layer read the encoder's tokens in a tensor of its own."""
        read, given = self.read[name], output.encoder_last_hidden_state
        tokens = read.values[..., 0].numel() // _ROWS
        return tokens == _PROMPT and self._inputs[read.source] is not given

    def _arguments(self, *, changed: bool) -> dict[str, object]:
        device = input_device(self.base)
        prompt = _tokens(self.base, _PROMPT, changed=changed).to(device)
        arguments: dict[str, object] = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
        }
        if self.base.config.is_encoder_decoder:
            target = _tokens(self.base, _TARGET, changed=changed).to(device)
            arguments["decoder_input_ids"] = target
        if "use_cache" in inspect.signature(self.base.forward).parameters:
            arguments["use_cache"] = True
        return arguments

    @contextmanager
    def _watching(self) -> Iterator[None]:
        hooks = []
        for name, module in self.base.named_modules():
            if linear_shape(module) is not None:
                hooks.append(module.register_forward_pre_hook(partial(self._note, name)))
                hooks.append(module.register_forward_hook(partial(self._note_output, name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_output(self, name: str, module: nn.Module, args: object, output: object) -> None:
        if not isinstance(output, Tensor):
            self.returns_more.add(name)

    def _note(self, name: str, module: nn.Module, args: tuple[object, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        if name in self.read:
            if self.read[name].values.shape != args[0].shape:
                self.varied.add(name)
            return
        self._inputs.append(args[0])
        source = next(i for i, each in enumerate(self._inputs) if each is args[0])
        self.read[name] = _Read(args[0].detach().clone(), source)


def _states(base: "PreTrainedModel", output: "ModelOutput") -> tuple[str, ...]:
    """Return the names of outputs that the next step takes and that are no cache."""
    accepted = inspect.signature(base.forward).parameters
    known = {*_CACHES, "rope_deltas"}
    return tuple(name for name in output if name in accepted and name not in known)


def _decoder_layers(base: "PreTrainedModel") -> set[str]:
    """Return the names of a decoder's modules, beside an encoder."""
    if not base.config.is_encoder_decoder:
        return set()
    inside = set(base.get_decoder().modules())
    return {name for name, module in base.named_modules() if module in inside}


def _tokens(base: "PreTrainedModel", length: int, *, changed: bool) -> Int[Tensor, "B T"]:
    """Return ordinary tokens, all different; `changed` exchanges those of the second row."""
    ids = torch.arange(_ROWS * length).view(_ROWS, length)
    if changed:
        ids[1] += length
    size: int = base.get_input_embeddings().weight.shape[0]
    first = 10 if size > 10 + 3 * length else 0  # the lowest are often special
    return (ids + first) % size


def _form(first: Tensor, second: Tensor) -> Form | None:
    """Return the form of an input, from two trials that differ in the second row alone."""
    if first.shape != second.shape:
        return None
    for tokens in (_PROMPT, _TARGET):
        if first.shape[:-1] == (_ROWS, tokens):
            return "rows"
        if first.shape[:-1] == (tokens, _ROWS):
            return "tokens-first"
        if first.shape[:-1] == (_ROWS, 1, tokens):  # the latent keys and values of DeepSeek
            return "one-head"
        if first.shape[:-1] == (_ROWS * tokens,):
            other = ~torch.isclose(first, second, rtol=1e-3, atol=1e-6).all(-1)
            by_row = other.view(_ROWS, tokens)
            by_token = other.view(tokens, _ROWS)
            if by_row[1].any() and not by_row[0].any():
                return "flat"
            if by_token[:, 1].any() and not by_token[:, 0].any():
                return "flat-tokens-first"
    return None
