"""Context gates: small networks that give every expert a weight, from what the prompt looks like at their layer.

Axes: `B` batch, `T` tokens, `D` input width, `E` experts.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class GateConfig(BaseModel):
    """What a gate reads and how its weights mix the experts.

    context: `prompt` pools the layer's input over the prompt tokens (in a decoder with cross-attention: the encoder's
        output), so that the weights are fixed before the first generated token. `reference` averages the scores of all
        valid tokens, future ones included; it scores given targets but cannot generate through a decoder.
    hidden: width of the gate's hidden layer.
    mixing: `output` adds Σ_e g_e s_e B_e A_e x; `parameter` adds (Σ_e g_e s_e B_e)(Σ_e g_e A_e) x, for equal ranks.
    temperature: divides the scores before the softmax; below 1 sharpens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: Literal["prompt", "reference"] = "prompt"
    hidden: int = Field(default=8, ge=1)
    mixing: Literal["output", "parameter"] = "output"
    temperature: float = Field(default=1.0, gt=0)

    @classmethod
    def reference(cls) -> "GateConfig":
        """Return the reference gate: non-causal mean of the scores, hidden width 4, matrices mixed separately."""
        return cls(context="reference", hidden=4, mixing="parameter")


class ContextGate(nn.Module):
    """A 2-layer perceptron with a softmax over the experts, computed in float32.

    Its scores start at zero, so every gate starts at the uniform mixture.
    """

    def __init__(self, width: int, experts: int, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        bias = config.context != "reference"
        self.lift = nn.Linear(width, config.hidden, bias=bias)
        self.score = nn.Linear(config.hidden, experts, bias=bias)
        nn.init.zeros_(self.score.weight)
        if bias:
            nn.init.zeros_(self.score.bias)

    def forward(self, hidden_BTD: Float[Tensor, "B T D"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Return the experts' weights for the tokens where `mask_BT` is true; rows sum to 1."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            if self.config.context == "reference":
                scores_BE = masked_mean(self._scores(hidden_BTD.float()), mask_BT)
            else:
                scores_BE = self._scores(_unit_scale(masked_mean(hidden_BTD, mask_BT)))
            return (scores_BE / self.config.temperature).softmax(-1)  # (B, E), rows sum to 1

    def _scores(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        scores: Tensor = self.score(self.lift(hidden).relu())
        return scores


def masked_mean(hidden_BTD: Float[Tensor, "B T D"], mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Return the float32 mean over the tokens where `mask_BT` is true; a row without any gives zeros."""
    kept_BTD = hidden_BTD.float().masked_fill(~mask_BT[..., None], 0.0)
    return kept_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def _unit_scale(context_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Scale each row to root mean square 1, so that one learning rate suits every layer of every base."""
    return nn.functional.rms_norm(context_BD, context_BD.shape[-1:], eps=1e-6)
