"""One pass of vLLM's model: which request each of its tokens belongs to, and what that one needs.

vLLM packs the tokens of all requests into one row. A request keeps a slot for its life, found by
its id, as it may sit out passes, be moved within the batch, or lose its cache and start again: then
its prompt comes together with the answer so far.

Axes: `T` tokens of the pass, `N` requests in it, `E` experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.mixture.gate import Evidence
from loramix.serving.vllm.asking import by_hand


class Request(Protocol):
    """What vLLM's runner keeps of a request."""

    num_computed_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True)
class Row:
    """A request in a pass: its tokens there, and its slot.

    begins: whether nothing of it lies in the cache. prompt: the number of its prompt's tokens.
    weights_E: those it brings; None where the gates decide.
    """

    slot: int
    start: int
    end: int
    begins: bool
    prompt: int
    weights_E: Float[Tensor, " E"] | None


@dataclass
class Pass:
    """The requests of one pass.

    decided: gate group -> weights of all tokens or, by prompts, of the requests that begin.
    evidence: that gates carry on.
    """

    rows: list[Row]
    device: torch.device
    decided: dict[str, Float[Tensor, "_ E"]] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)

    def __post_init__(self) -> None:
        lengths = torch.tensor([row.end - row.start for row in self.rows])
        slots = torch.tensor([row.slot for row in self.rows])
        self.slot_T = slots.repeat_interleave(lengths).to(self.device)
        self.beginning = [row for row in self.rows if row.begins]
        self.most_slots = int(slots.max()) + 1
        self.held_T: Tensor | None = None
        self.weights_TE: Tensor | None = None
        if any(row.weights_E is not None for row in self.rows):
            self._hold(lengths)

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return self.rows[-1].end

    @property
    def one_each(self) -> bool:
        """Whether every request goes on by one token."""
        return not self.beginning and self.tokens == len(self.rows)

    def over(self, decided_TE: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Return what gates decided for the tokens, but for requests with weights by hand."""
        if self.held_T is None or self.weights_TE is None:
            return decided_TE
        return torch.where(self.held_T[:, None], self.weights_TE, decided_TE)

    def _hold(self, lengths: Tensor) -> None:
        experts = next(len(row.weights_E) for row in self.rows if row.weights_E is not None)
        nothing = torch.zeros(experts)
        weights_NE = torch.stack(
            [nothing if row.weights_E is None else row.weights_E for row in self.rows]
        )
        held_N = torch.tensor([row.weights_E is not None for row in self.rows])
        self.weights_TE = weights_NE.repeat_interleave(lengths, 0).to(self.device)
        self.held_T = held_N.repeat_interleave(lengths).to(self.device)


class Slots:
    """The slots of all requests that vLLM knows, and the weights that they bring."""

    def __init__(self, experts: Sequence[str]) -> None:
        self._experts = experts
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._weights: dict[str, Tensor | None] = {}

    def next_pass(
        self,
        scheduled: Sequence[tuple[str, int]],
        known: Mapping[str, Request],
        device: torch.device,
    ) -> Pass:
        """Return the pass of these requests, in their order.

        scheduled: ids and numbers of tokens. known: all requests that have not ended.
        """
        for gone in self._slots.keys() - known.keys():
            self._free.append(self._slots.pop(gone))
            self._weights.pop(gone, None)
        rows, start = [], 0
        for name, tokens in scheduled:
            request = known[name]
            begins = request.num_computed_tokens == 0
            if begins or name not in self._weights:  # an id may be used again
                params = getattr(request, "sampling_params", None)
                self._weights[name] = by_hand(getattr(params, "extra_args", None), self._experts)
            row = Row(
                slot=self._slot(name),
                start=start,
                end=start + tokens,
                begins=begins,
                prompt=request.num_prompt_tokens,
                weights_E=self._weights[name],
            )
            rows.append(row)
            start += tokens
        return Pass(rows, device)

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = self._free.pop() if self._free else len(self._slots)
        return self._slots[name]
