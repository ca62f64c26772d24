"""What the experts add to a layer's output, and what their weights make of it.

    weighted: y = W x + up (weights · (down x))    stacked matrices; experts of weight 0 left out
    folded:   y = (W + up (weights · down)) x      a copy of W, which costs nothing per token

The base's own weight is never written, so nothing has to be restored, whatever interrupts a call.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightedUpdate:
    """The stacked matrices of the experts that weigh anything, and the weight of each rank.

    down_RD: stacked lora_A; None stands for those of all experts, which the layer shares with
        others that read its input.
    up_OR: stacked lora_B, scaling included.
    weights_BTR: for each row, or for each token.
    rank: of every expert, where matrices are mixed separately (parameter mixing), else None.
    """

    down_RD: Float[Tensor, "R D"] | None
    up_OR: Float[Tensor, "O R"]
    weights_BTR: Float[Tensor, "B _ R"]
    rank: int | None = None

    def weigh(self, low_BTR: Float[Tensor, "B T R"]) -> Float[Tensor, "B T R"]:
        """Return g_e A_e x of every expert e or, with parameter mixing, g_e Σ_f g_f A_f x."""
        weights_BTR = self.weights_BTR.to(low_BTR.device, low_BTR.dtype)
        low_BTR = low_BTR * weights_BTR
        if self.rank is None:
            return low_BTR
        low_BTEr = low_BTR.view(*low_BTR.shape[:-1], -1, self.rank)
        total_BTEr = low_BTEr.sum(-2, keepdim=True).expand_as(low_BTEr)  # every B_e sees this sum
        return total_BTEr.flatten(-2) * weights_BTR

    def matrices(self) -> tuple[Float[Tensor, "O r"], Float[Tensor, "r D"]]:
        """Return the one up- and down-projection that equal this update of the first row."""
        assert self.down_RD is not None, "who folds names the down-projections"
        weights_R = self.weights_BTR[0, 0].to(self.up_OR.device, self.up_OR.dtype)
        up_OR = self.up_OR * weights_R
        if self.rank is None:
            return up_OR, self.down_RD
        down_RD = self.down_RD * weights_R[:, None]
        up_OEr = up_OR.view(len(up_OR), -1, self.rank)
        down_ErD = down_RD.view(-1, self.rank, down_RD.shape[1])
        return up_OEr.sum(1), down_ErD.sum(0)

    def select(self, rows: Tensor) -> "WeightedUpdate":
        """Select rows of the batch, as beam search does with its cache."""
        return replace(self, weights_BTR=self.weights_BTR[rows.to(self.weights_BTR.device)])

    def __deepcopy__(self, memo: dict[int, object]) -> "WeightedUpdate":
        return self  # nothing here is ever written


@dataclass(frozen=True)
class FoldedWeight:
    """W + Σ_e g_e s_e B_e A_e at the same weights for all rows, and the base's bias."""

    weight_OD: Float[Tensor, "O D"]
    bias_O: Float[Tensor, " O"] | None

    def select(self, rows: Tensor) -> "FoldedWeight":
        """Return this weight, which is the same for every row."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "FoldedWeight":
        return self


Update: TypeAlias = WeightedUpdate | FoldedWeight


def add_product(
    y_BTO: Float[Tensor, "*rows O"], low_BTR: Float[Tensor, "*rows R"], up_OR: Float[Tensor, "O R"]
) -> Float[Tensor, "*rows O"]:
    """Return y + low upᵀ in the number format of y.

    Without gradients `y_BTO` is overwritten: one pass over the output instead of three.
    """
    if not y_BTO.dtype == low_BTR.dtype == up_OR.dtype:
        return y_BTO + nn.functional.linear(low_BTR, up_OR).to(y_BTO.dtype)
    rows_NO, low_NR = y_BTO.flatten(0, -2), low_BTR.flatten(0, -2)
    if torch.is_grad_enabled():
        return torch.addmm(rows_NO, low_NR, up_OR.T).view(y_BTO.shape)
    return rows_NO.addmm_(low_NR, up_OR.T).view(y_BTO.shape)
