"""The mixture of one layer: y = W x + Σ_e g_e s_e B_e A_e x, with all experts' matrices stacked.

Axes: `B` batch, `T` tokens, `D` input width, `O` output width, `E` experts, `R` ranks of all experts side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix.call import Call, Memory, Used, current_call, note
from loramix.errors import MixtureError
from loramix.gate import ContextGate


@dataclass(frozen=True)
class LowRank:
    """One expert's update of one layer: scale · up @ down."""

    down_RD: Float[Tensor, "R D"]
    up_OR: Float[Tensor, "O R"]
    scale: float


class MixtureLinear(nn.Module):
    """A frozen linear layer with the frozen updates of its experts, weighed by a gate.

    updates: one entry per expert, None where an expert does not adapt this layer: it adds zero here.
    gate: this layer's own, or the one that it shares with others; `reads` says whether it decides from this layer's
        input. The other layers of the group reuse the decision.
    """

    down_RD: Tensor
    up_OR: Tensor
    expert_of_rank: Tensor

    def __init__(
        self,
        base: nn.Module,
        name: str,
        updates: Sequence[LowRank | None],
        gate: ContextGate,
        *,
        group: str,
        reads: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        present = [(expert, update) for expert, update in enumerate(updates) if update is not None]
        ranks = [update.down_RD.shape[0] for _, update in present]
        if gate.config.mixing == "parameter" and len(set(ranks)) > 1:
            raise MixtureError(
                f"parameter mixing needs equal ranks, but the experts of layer '{name}' have ranks {ranks}; "
                "use mixing='output'"
            )
        self.base, self.name, self.group, self.config = base, name, group, gate.config
        self.gate = gate if reads else None
        self._shared = (gate,)  # a tuple keeps torch from registering the gate a second time
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
        weights_BTE = self._weights(x_BTD)
        return y_BTO + self._update(x_BTD.to(self.down_RD.dtype), weights_BTE).to(y_BTO.dtype)

    def _update(self, x_BTD: Float[Tensor, "B T D"], weights_BTE: Float[Tensor, "B _ E"]) -> Float[Tensor, "B T O"]:
        weights_BTR = weights_BTE.to(x_BTD.device, x_BTD.dtype)[..., self.expert_of_rank]
        low_BTR = nn.functional.linear(x_BTD, self.down_RD) * weights_BTR
        if self.config.mixing == "parameter":
            low_BTR = self._sum_of_experts(low_BTR) * weights_BTR
        return nn.functional.linear(low_BTR, self.up_OR)

    def _sum_of_experts(self, low_BTR: Float[Tensor, "B T R"]) -> Float[Tensor, "B T R"]:
        """Sum the experts' down-projections and hand the sum to every expert's up-projection."""
        per_expert = low_BTR.view(*low_BTR.shape[:-1], self.present, -1)
        return per_expert.sum(-2, keepdim=True).expand_as(per_expert).flatten(-2)

    def _weights(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B _ E"]:
        """Return the weights for this input: fixed, decided before in this call, or decided now."""
        call = current_call()
        if call is None:
            raise MixtureError(f"layer '{self.name}' was called outside its mixture; call the whole model instead")
        if call.fixed is not None:
            used = Used(call.fixed.of(self.name, len(x_BTD)), None)
        else:
            used = self._decision(x_BTD, call)
        note(self.name, used)
        return used.weights

    def _decision(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Used:
        """Return the decision that this layer's group has made, or make it."""
        memory = call.memory if self.config.context != "prompt" else None
        if memory is None or x_BTD is not memory.hidden_BSD:
            if self.group not in call.decided:
                call.decided[self.group] = self._decide(x_BTD, call)
            return Used(call.decided[self.group], call.mask_BT)
        of_memory = f"{self.group} of memory"  # the keys and values of cross-attention have the encoder's tokens
        if of_memory not in call.decided:
            call.decided[of_memory] = self._decide_of_memory(memory)
        return Used(call.decided[of_memory], memory.mask_BS)

    def _decide(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Float[Tensor, "B _ E"]:
        """Let the gate decide from this layer's input or, as a prompt gate in a decoder, from the encoder's output."""
        if self.gate is None:
            raise MixtureError(
                f"layer '{self.name}' runs before the layer from which the gate of '{self.group}' reads; "
                "use scope='layer' with this base model"
            )
        if self.config.context == "prompt" and call.memory is not None:
            mean_B1D = call.memory.mean_B1D
            return self.gate(mean_B1D, torch.ones_like(mean_B1D[..., 0], dtype=torch.bool))[0]  # type: ignore[no-any-return]
        if call.mask_BT is None or call.mask_BT.shape != x_BTD.shape[:2]:
            raise MixtureError(
                f"layer '{self.name}' reads input of shape {list(x_BTD.shape)}, which are not the tokens of its stack, "
                "so its gate cannot tell which of them are real"
            )
        weights_BTE, state_BF = self.gate(x_BTD, call.mask_BT, call.states.get(self.group))
        if state_BF is not None:
            call.states[self.group] = state_BF
        return weights_BTE  # type: ignore[no-any-return]

    def _decide_of_memory(self, memory: Memory) -> Float[Tensor, "B _ E"]:
        """Let the gate, which may be another layer's, decide from the encoder's tokens that this layer reads."""
        (gate,) = self._shared
        width = memory.hidden_BSD.shape[-1]
        if gate.width != width:
            raise MixtureError(
                f"layer '{self.name}' reads the encoder's output of width {width}, but the gate of '{self.group}' "
                f"reads width {gate.width}; use scope='layer' with these experts"
            )
        return gate(memory.hidden_BSD, memory.mask_BS)[0]  # type: ignore[no-any-return]
