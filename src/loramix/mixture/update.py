"""Low-rank updates: one expert's, and what a layer adds once its experts are weighed.

    gathered: y = W x + up (weights · (down x))     the experts' matrices stacked, those without
        weight left out
    folded:   y = (W + up (weights · down)) x       a copy of the base's weight, which costs nothing
        per token

The base's own weight is never written, so nothing has to be restored, whatever interrupts a call.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Gathered:
    """The stacked update of the experts that weigh anything, with the weight of every rank for each
    row or token.

    down_RD: None stands for all experts' down-projections, which the layer shares with others that
    read its input.
    rank: of every expert, where their matrices are mixed separately (parameter mixing); None for
        output mixing.
    """

    down_RD: Float[Tensor, "R D"] | None
    up_OR: Float[Tensor, "O R"]
    weights_BTR: Float[Tensor, "B _ R"]
    rank: int | None = None

    def add(
        self, y_BTO: Float[Tensor, "B T O"], low_BTR: Float[Tensor, "B T R"]
    ) -> Float[Tensor, "B T O"]:
        """Return the base's output plus the update of the down-projected input; `y_BTO` may be
        overwritten.
        """
        weights_BTR = self.weights_BTR.to(low_BTR.device, low_BTR.dtype)
        low_BTR = low_BTR * weights_BTR
        if (
            self.rank is not None
        ):  # hand the sum of the experts' down-projections to every expert's up-projection
            per_expert = low_BTR.view(*low_BTR.shape[:-1], -1, self.rank)
            low_BTR = (
                per_expert.sum(-2, keepdim=True).expand_as(per_expert).flatten(-2) * weights_BTR
            )
        if not y_BTO.dtype == low_BTR.dtype == self.up_OR.dtype:
            return y_BTO + nn.functional.linear(low_BTR, self.up_OR).to(y_BTO.dtype)
        rows_NO, low_NR = y_BTO.flatten(0, -2), low_BTR.flatten(0, -2)
        if torch.is_grad_enabled():
            return torch.addmm(rows_NO, low_NR, self.up_OR.T).view(y_BTO.shape)
        return rows_NO.addmm_(low_NR, self.up_OR.T).view(y_BTO.shape)

    def matrices(self) -> tuple[Float[Tensor, "O r"], Float[Tensor, "r D"]]:
        """Return the one up- and down-projection that this update is for the first row."""
        assert self.down_RD is not None, "who folds names the down-projections"
        weights_R = self.weights_BTR[0, 0].to(self.up_OR.device, self.up_OR.dtype)
        up_OR = self.up_OR * weights_R
        if self.rank is None:
            return up_OR, self.down_RD
        down_RD = self.down_RD * weights_R[:, None]
        return up_OR.view(len(up_OR), -1, self.rank).sum(1), down_RD.view(
            -1, self.rank, down_RD.shape[1]
        ).sum(0)

    def rearranged(self, rows: Tensor) -> "Gathered":
        """Return the update of these rows, as a cache is reordered or repeated."""
        return replace(self, weights_BTR=self.weights_BTR[rows.to(self.weights_BTR.device)])

    def __deepcopy__(self, memo: dict[int, object]) -> "Gathered":
        return self


@dataclass(frozen=True)
class Folded:
    """The base's weight plus the update, the same one for all rows, and the base's bias."""

    weight_OD: Float[Tensor, "O D"]
    bias_O: Float[Tensor, " O"] | None

    def rearranged(self, rows: Tensor) -> "Folded":
        """Return this update, which does not depend on rows."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "Folded":
        return self


Update: TypeAlias = Gathered | Folded
