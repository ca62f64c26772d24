"""The mixture of one layer: y = W x + Σ_e g_e s_e B_e A_e x, with all experts' matrices stacked.

Axes: `B` batch, `T` tokens, `D` input width, `O` output width, `E` experts, `R` ranks of all experts side by side.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix.call import Call, current_call
from loramix.errors import MixtureError
from loramix.gate import ContextGate, GateConfig


@dataclass(frozen=True)
class LowRank:
    """One expert's update of one layer: scale · up @ down."""

    down_RD: Float[Tensor, "R D"]
    up_OR: Float[Tensor, "O R"]
    scale: float


class MixtureLinear(nn.Module):
    """A frozen linear layer with a gate and the frozen updates of its experts.

    `updates` holds one entry per expert, None where an expert does not adapt this layer: it adds zero here.
    """

    down_RD: Tensor
    up_OR: Tensor
    expert_of_rank: Tensor

    def __init__(
        self,
        base: nn.Module,
        name: str,
        updates: list[LowRank | None],
        config: GateConfig,
        *,
        gate_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        present = [(expert, update) for expert, update in enumerate(updates) if update is not None]
        ranks = [update.down_RD.shape[0] for _, update in present]
        if config.mixing == "parameter" and len(set(ranks)) > 1:
            raise MixtureError(
                f"parameter mixing needs equal ranks, but the experts of layer '{name}' have ranks {ranks}; "
                "use mixing='output'"
            )
        self.base, self.name, self.config, self.experts = base, name, config, len(updates)
        self.gate = ContextGate(gate_width, len(updates), config).to(device)
        down_RD = torch.cat([update.down_RD for _, update in present])
        up_OR = torch.cat([update.up_OR.float() * update.scale for _, update in present], dim=1)
        expert_of_rank = torch.tensor(
            [expert for (expert, _), rank in zip(present, ranks, strict=True) for _ in range(rank)]
        )
        self.register_buffer("down_RD", down_RD.to(device, dtype))
        self.register_buffer("up_OR", up_OR.to(device, dtype))
        self.register_buffer("expert_of_rank", expert_of_rank.to(device))
        self.present = len(present)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some models look at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T O"]:
        """Return the base layer's output plus the weighted updates of all experts."""
        y_BTO: Tensor = self.base(x_BTD)
        weights_BE = self._weights(x_BTD)
        return y_BTO + self._update(x_BTD.to(self.down_RD.dtype), weights_BE).to(y_BTO.dtype)

    def _update(self, x_BTD: Float[Tensor, "B T D"], weights_BE: Float[Tensor, "B E"]) -> Float[Tensor, "B T O"]:
        weights_B1R = weights_BE[:, None, self.expert_of_rank].to(x_BTD.dtype)
        low_BTR = nn.functional.linear(x_BTD, self.down_RD) * weights_B1R
        if self.config.mixing == "parameter":
            low_BTR = self._shared(low_BTR) * weights_B1R
        return nn.functional.linear(low_BTR, self.up_OR)

    def _shared(self, low_BTR: Float[Tensor, "B T R"]) -> Float[Tensor, "B T R"]:
        """Sum the experts' down-projections and hand the sum to every expert's up-projection."""
        per_expert = low_BTR.view(*low_BTR.shape[:-1], self.present, -1)
        return per_expert.sum(-2, keepdim=True).expand_as(per_expert).flatten(-2)

    def _weights(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B E"]:
        call = current_call()
        if call is None:
            raise MixtureError(f"layer '{self.name}' was called outside its mixture; call the whole model instead")
        if call.fixed_E is not None:
            weights_BE = call.fixed_E.to(x_BTD.device).expand(len(x_BTD), -1)
        elif call.given is not None:
            weights_BE = self._given(call.given, rows=len(x_BTD))
        else:
            weights_BE = self._decide(x_BTD, call)
        call.decided[self.name] = weights_BE
        return weights_BE

    def _decide(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Float[Tensor, "B E"]:
        memory = call.memory
        if memory is None:
            return self.gate(x_BTD, call.mask_BT)  # type: ignore[no-any-return]
        if self.config.context == "prompt":
            return self.gate(memory.mean_B1D, memory.mean_B1D.new_ones(memory.mean_B1D.shape[:2], dtype=torch.bool))  # type: ignore[no-any-return]
        reads_memory = x_BTD is memory.hidden_BSD  # the keys and values of cross-attention
        return self.gate(x_BTD, memory.mask_BS if reads_memory else call.mask_BT)  # type: ignore[no-any-return]

    def _given(self, given: dict[str, Tensor], *, rows: int) -> Float[Tensor, "B E"]:
        weights_BE = given[self.name]
        if len(weights_BE) != rows:
            raise MixtureError(
                f"the cache holds gate weights for {len(weights_BE)} rows, but this call has {rows}; "
                "start from an empty cache, or use one with as many rows as the call"
            )
        return weights_BE
