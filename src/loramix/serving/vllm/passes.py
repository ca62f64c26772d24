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
from loramix.mixture.requests import Packed, Row, SlotNumbers
from loramix.serving.vllm.asking import by_hand


class Request(Protocol):
    """What vLLM's runner keeps of a request."""

    num_computed_tokens: int
    num_prompt_tokens: int


@dataclass
class Pass(Packed):
    """The requests of one pass.

    decided: gate group -> weights of all tokens or, by prompts, of the requests that begin.
    evidence: that gates carry on, or that decide together.
    ahead: whether the base alone is at work. last_ND: what the last gate read then.
    together_NE: what the gates then decided together for the requests that begin.
    """

    decided: dict[str, Float[Tensor, "_ E"]] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    ahead: bool = False
    last_ND: Float[Tensor, "N D"] | None = None
    together_NE: Float[Tensor, "N E"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.held_T: Tensor | None = None
        self.weights_TE: Tensor | None = None
        if any(row.weights_E is not None for row in self.rows):
            self._hold()

    @property
    def undecided(self) -> bool:
        """Whether gates have to decide for a request that begins."""
        return any(row.weights_E is None for row in self.beginning)

    def over(self, decided_TE: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
        """Return what gates decided for the tokens, but for requests with weights by hand."""
        if self.held_T is None or self.weights_TE is None:
            return decided_TE
        return torch.where(self.held_T[:, None], self.weights_TE, decided_TE)

    def _hold(self) -> None:
        experts = next(len(row.weights_E) for row in self.rows if row.weights_E is not None)
        nothing = torch.zeros(experts)
        weights_NE = torch.stack(
            [nothing if row.weights_E is None else row.weights_E for row in self.rows]
        )
        held_N = torch.tensor([row.weights_E is not None for row in self.rows])
        self.weights_TE = weights_NE.repeat_interleave(self.lengths, 0).to(self.device)
        self.held_T = held_N.repeat_interleave(self.lengths).to(self.device)


class Slots:
    """The slots of all requests that vLLM knows, and the weights that they bring."""

    def __init__(self, experts: Sequence[str]) -> None:
        self._experts, self._slots = experts, SlotNumbers()
        self._weights: dict[str, tuple[Request, Tensor | None]] = {}

    def next_pass(
        self,
        scheduled: Sequence[tuple[str, int]],
        known: Mapping[str, Request],
        device: torch.device,
    ) -> Pass:
        """Return the pass of these requests, in their order.

        scheduled: ids and numbers of tokens. known: all requests that have not ended.
        """
        for gone in self._slots.names - known.keys():
            self._slots.free(gone)
            self._weights.pop(gone, None)
        rows, start = [], 0
        for name, tokens in scheduled:
            request = known[name]
            if name not in self._weights or self._weights[name][0] is not request:
                params = getattr(request, "sampling_params", None)  # an id may be used again
                weights_E = by_hand(getattr(params, "extra_args", None), self._experts)
                self._weights[name] = request, weights_E
            row = Row(
                slot=self._slots[name],
                start=start,
                end=start + tokens,
                begins=request.num_computed_tokens == 0,
                prompt=request.num_prompt_tokens,
                weights_E=self._weights[name][1],
            )
            rows.append(row)
            start += tokens
        return Pass(rows, device)
