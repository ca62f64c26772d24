"""What the gates and layers of a mixture read of prompts, while one expert is at work."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loramix.mixture.context import masked_mean, read
from loramix.mixture.gate import ContextGate
from loramix.mixture.groups import in_decoder
from loramix.mixture.linear import linear_shape
from loramix.mixture.model import MixtureModel
from loramix.mixture.pooling import AttentionPooling, unit_scale

KEPT_BYTES = 2**30  # of what is read, that are held at most
Examples = Sequence[str | Mapping[str, Tensor]]
Prompts = list[Float[Tensor, "_ _"]]  # the tokens of each; widths differ between readers


@contextmanager
def contexts_of(
    mixture: MixtureModel, inputs: Mapping[str, Tensor], *, expert: int | None
) -> Iterator[dict[str, Float[Tensor, "B _"]]]:
    """Collect, by layer, the mean context of each row that the gates read inside the block, and
    that gates in other layers would read.

    The gates choose `expert` there, so that deeper layers read what they will read once the gates
    are right; None is the base.
    """
    found: dict[str, Tensor] = {}
    hooks = [
        gate.register_forward_hook(partial(_choose, found, reader, expert))
        for reader, gate in mixture.gates.items()
    ]
    prompt_BT = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    hooks += [
        layer.register_forward_pre_hook(partial(_note, found, name, mixture, prompt_BT))
        for name, layer in _other_layers(mixture)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def tokens_of(poolings: Mapping[str, AttentionPooling]) -> Iterator[dict[str, Prompts]]:
    """Collect, by reader, the tokens of each prompt that is pooled inside the block, at root mean
    square 1 and in float16.

    Gates that read the same input share one list.
    """
    found: dict[str, Prompts] = {}
    last: list[tuple[Tensor, Prompts]] = []
    hooks = [
        pooling.register_forward_pre_hook(partial(_keep_tokens, found, last, reader))
        for reader, pooling in poolings.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _keep_tokens(
    found: dict[str, Prompts],
    last: list[tuple[Tensor, Prompts]],
    reader: str,
    pooling: nn.Module,
    args: tuple[Tensor, Tensor],
) -> None:
    """Keep the tokens that a pooling reads; `last` holds the input before, and its tokens."""
    hidden_BTD, member_BST = args
    if reader in found:
        return
    if not last or last[0][0] is not hidden_BTD:
        rows = zip(hidden_BTD, member_BST[:, 0], strict=True)
        prompts = [unit_scale(row_TD[own_T].float()).half().cpu() for row_TD, own_T in rows]
        last[:] = [(hidden_BTD, prompts)]
    found[reader] = last[0][1]


def _choose(
    found: dict[str, Tensor],
    reader: str,
    expert: int | None,
    gate: ContextGate,
    args: tuple[object, ...],
    output: Tensor,
) -> Tensor:
    """Note what a gate reads, and put one expert in the place of its decision."""
    context, mask = args[:2]
    assert isinstance(context, Tensor)
    assert isinstance(mask, Tensor)
    if context.shape[1] != mask.shape[1]:  # one for the whole row
        mask = torch.ones_like(context[..., 0], dtype=torch.bool)
    found.setdefault(reader, masked_mean(context, mask)[:, 0])
    chosen = torch.zeros_like(output)
    if expert is not None:
        chosen[..., expert] = 1.0
    return chosen


def _note(
    found: dict[str, Tensor],
    name: str,
    mixture: MixtureModel,
    prompt_BT: Bool[Tensor, "B T"],
    layer: nn.Module,
    args: tuple[object, ...],
) -> None:
    """Note what a gate would read in a layer that has none."""
    hidden = args[0] if args else None
    # Experts of a mixture of experts get some tokens alone, so nothing is known of them.
    if isinstance(hidden, Tensor) and hidden.dim() == 3 and hidden.shape[:2] == prompt_BT.shape:
        config = mixture.gate_config
        attends = config.pooling == "attention"  # as a gate would that has not learned how
        pooling = AttentionPooling(hidden.shape[-1]).to(hidden.device) if attends else None
        context, _ = read(config, hidden, prompt_BT, pooling=pooling)
        mask = prompt_BT if context.shape[1] == prompt_BT.shape[1] else prompt_BT[:, :1] | True
        found.setdefault(name, masked_mean(context, mask)[:, 0])


def _other_layers(mixture: MixtureModel) -> list[tuple[str, nn.Module]]:
    """Return the linear layers in the base's blocks that no expert adapts, but might.

    Gates that several layers share read at the first of them, and a decoder's prompt gates what the
    encoder wrote: those are known already.
    """
    if mixture.gate_config.scope != "layer" or mixture.gate_config.context == "reference":
        return []
    adapted = {id(module) for layer in mixture.layers.values() for module in layer.modules()}
    return [
        (name, module)
        for name, module in mixture.base.named_modules()
        if linear_shape(module) is not None
        and id(module) not in adapted
        and re.search(r"\.\d+\.", name)  # within a numbered block
        and not in_decoder(mixture.base, name)
    ]
