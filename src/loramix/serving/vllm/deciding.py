"""Weights that depend on more than a token's own input: on its request, or on other gates.

    prompt     decided when a request's prompt is read, kept in a table by slot; with `first_pass`,
               by all gates together, in a pass of the base alone that `worker` puts before
    running    from sums by slot, that go on from pass to pass
    any        weights by hand, gates that several layers share, evidence that gates carry on

A request that lost its cache comes again with its prompt and the answer so far in one: its weights
are decided anew, from the prompt alone, and its sums start anew.

Axes: `T` tokens of all requests, `N` requests that begin, `D` input width, `E` experts, `P` layers
of the base in the module, `S` slots, `F` = D + 1: a sum and a count. See also
`loramix.mixture.requests`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.forward_context import get_forward_context

from loramix.config import GateConfig
from loramix.mixture.gate import ContextGate, Evidence
from loramix.mixture.pooling import AttentionPooling, unit_scale
from loramix.mixture.requests import (
    Row,
    grown,
    prompt_contexts,
    prompts_in_parts,
    running_means,
)
from loramix.serving.vllm.passes import Pass

PASS = "loramix"  # the key of the running pass in vLLM's forward context


@dataclass(frozen=True)
class Reader:
    """A layer of the base: the group of its gate, the gate if it reads here, and its block.

    last: whether no other gate of the base comes after this one.
    """

    group: str
    gate: ContextGate | None
    block: int
    last: bool


class Decider:
    """Decides for the layers of one module of vLLM.

    name: of the module, by which compiled code finds it.
    """

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        config: GateConfig,
        experts: int,
    ) -> None:
        self.name, self.experts = name, experts
        self._readers, self._config = readers, config
        self._table_SPE: Tensor | None = None  # what prompts have decided
        self._sums_SF: Tensor | None = None

    def __call__(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T P E"]:
        """Return the weights of every layer for every token.

        They are zeros where vLLM only tries a pass, and where the base alone is at work.
        """
        now: Pass | None = get_forward_context().additional_kwargs.get(PASS)
        if now is not None and now.ahead:
            self._read_ahead(x_TD, now)
        if now is None or now.ahead:
            shape = len(x_TD), len(self._readers), self.experts
            return x_TD.new_zeros(shape, dtype=torch.float32)
        padding = len(x_TD) - now.tokens
        decide = self._by_prompt if self._config.context == "prompt" else self._by_token
        weights_TPE = decide(x_TD[: now.tokens], now)
        return nn.functional.pad(weights_TPE, (0, 0, 0, 0, 0, padding)) if padding else weights_TPE

    def _by_prompt(self, x_TD: Float[Tensor, "T D"], now: Pass) -> Float[Tensor, "T P E"]:
        if now.beginning:
            if self._config.first_pass:
                now.decided |= {reader.group: self._together(now) for reader in self._readers}
            else:
                for reader, context_ND in self._contexts(x_TD, now):
                    now.decided[reader.group] = self._gate(reader, context_ND, now)
            self._keep(now)
        assert self._table_SPE is not None, "every request begins"
        return self._table_SPE[now.slot_T]

    def _read_ahead(self, x_TD: Float[Tensor, "T D"], now: Pass) -> None:
        """Add the scores of the gates that read here to those by which all decide in `end`."""
        for reader, context_ND in self._contexts(x_TD, now):
            if reader.last:
                now.last_ND = context_ND
            elif reader.gate is not None:
                decided(reader.gate, context_ND, now.evidence)

    def _contexts(
        self, x_TD: Float[Tensor, "T D"], now: Pass
    ) -> Iterator[tuple[Reader, Float[Tensor, "N D"]]]:
        """Yield the layers whose gates read here, and what these read of each prompt."""
        begun, found = _whole(now), dict[AttentionPooling | None, Tensor]()
        for reader in self._readers:
            if reader.gate is not None:
                pooling = reader.gate.pooling
                if pooling not in found:  # means are the same for all
                    found[pooling] = prompt_contexts(x_TD, begun, pooling)
                yield reader, found[pooling]

    def _together(self, now: Pass) -> Float[Tensor, "N E"]:
        if now.together_NE is None:  # all bring weights of their own
            now.together_NE = torch.zeros(len(now.beginning), self.experts, device=now.device)
        return now.together_NE

    def _keep(self, now: Pass) -> None:
        """Keep the weights of the requests that begin."""
        found_NPE = torch.stack([now.decided[reader.group] for reader in self._readers], 1)
        table_SPE = self._table_SPE = grown(self._table_SPE, now.most_slots, found_NPE)
        for row, found_PE in zip(now.beginning, found_NPE, strict=True):
            by_hand = row.weights_E
            table_SPE[row.slot] = found_PE if by_hand is None else by_hand.to(found_PE.device)

    def _by_token(self, x_TD: Float[Tensor, "T D"], now: Pass) -> Float[Tensor, "T P E"]:
        context_TD: Tensor | None = None
        for reader in self._readers:
            if reader.gate is None:
                continue
            if context_TD is None:
                running = self._config.context == "running"
                context_TD = unit_scale(self._running(x_TD, now) if running else x_TD.float())
            now.decided[reader.group] = now.over(self._gate(reader, context_TD, now))
        return torch.stack([now.decided[each.group] for each in self._readers], 1)

    def _gate(
        self, reader: Reader, context_TD: Float[Tensor, "T D"], now: Pass
    ) -> Float[Tensor, "T E"]:
        assert reader.gate is not None
        evidence = None
        if self._config.carry:
            evidence, now.evidence.blocks = now.evidence, reader.block + 1
        return decided(reader.gate, context_TD, evidence)

    def _running(self, x_TD: Float[Tensor, "T D"], now: Pass) -> Float[Tensor, "T D"]:
        """Return, for every token, the mean of its request's inputs so far."""
        means_TD, self._sums_SF = running_means(x_TD, now, self._sums_SF)
        return means_TD


class Held(nn.Module):
    """Weights by hand of every token, at one place in memory, for layers that decide by tokens.

    Compiled code, and CUDA graphs, read them where they lie.
    """

    held_T: Tensor
    weights_TE: Tensor

    def __init__(self, tokens: int, experts: int, device: torch.device) -> None:
        super().__init__()
        self.experts = experts
        held_T = torch.zeros(tokens, dtype=torch.bool, device=device)
        weights_TE = torch.zeros(tokens, experts, dtype=torch.float32, device=device)
        self.register_buffer("held_T", held_T, persistent=False)
        self.register_buffer("weights_TE", weights_TE, persistent=False)
        self._empty = True

    def take(self, now: Pass) -> None:
        """Take those of a pass."""
        if now.held_T is None or now.weights_TE is None:
            if not self._empty:
                self.held_T.zero_()
                self._empty = True
            return
        self.held_T.zero_()
        self.held_T[: now.tokens] = now.held_T
        self.weights_TE[: now.tokens] = now.weights_TE
        self._empty = False

    def forward(self, decided_TPE: Float[Tensor, "T P E"]) -> Float[Tensor, "T P E"]:
        """Return what gates decided, but for tokens of requests with weights by hand."""
        tokens = decided_TPE.shape[0]
        held_T11 = self.held_T[:tokens, None, None]
        return torch.where(held_T11, self.weights_TE[:tokens, None], decided_TPE)


def end(last: Reader, now: Pass) -> None:
    """Let all gates decide together, by what they have read ahead.

    As in `loramix.mixture.first_pass`, whatever the order in which vLLM calls its layers.
    """
    assert last.gate is not None
    assert now.last_ND is not None
    now.evidence.blocks = last.block + 1
    now.together_NE = decided(last.gate, now.last_ND, now.evidence)
    now.last_ND = None


def decided(
    gate: nn.Module, context_TD: Float[Tensor, "T D"], evidence: Evidence | None = None
) -> Float[Tensor, "T E"]:
    """Return a gate's weights for contexts; evidence: of the gates before it."""
    mask_1T = torch.ones_like(context_TD[None, :, 0], dtype=torch.bool)
    weights_1TE: Tensor = gate(context_TD[None], mask_1T, evidence)
    return weights_1TE[0]


def _whole(now: Pass) -> Sequence[Row]:
    """Return the rows that begin; RuntimeError if one's prompt is not all there."""
    if prompts_in_parts(now):
        raise RuntimeError(
            "a prompt gate reads the whole prompt at once: start vLLM with "
            "--no-enable-chunked-prefill and --no-enable-prefix-caching"
        )
    return now.beginning
