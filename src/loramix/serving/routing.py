"""The routing weights that the rows of a batch have used, summed up as they generate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loramix.mixture.weights import RoutingWeights


@dataclass
class RoutingSums:
    """Sums of every row's weights by layer, and the number of tokens that the layer read.

    Axes: `B` rows, `L` adapted layers, `E` experts.
    """

    layers: Sequence[str]
    sums_BLE: Float[Tensor, "B L E"]
    counts_BL: Float[Tensor, "B L"]

    @classmethod
    def of(cls, layers: Sequence[str], record: Mapping[str, RoutingWeights]) -> "RoutingSums":
        """Return the sums of one pass, in which not every layer need have run."""
        places = torch.tensor([place for place, name in enumerate(layers) if name in record])
        used = [record[name] for name in layers if name in record]
        counts_BK = torch.stack([_tokens(each) for each in used], 1)
        means_BKE = torch.stack([each.row_mean.float().cpu() for each in used], 1)
        rows, _, experts = means_BKE.shape
        sums_BLE = torch.zeros(rows, len(layers), experts)
        counts_BL = torch.zeros(rows, len(layers))
        sums_BLE[:, places] = means_BKE * counts_BK[..., None]
        counts_BL[:, places] = counts_BK
        return cls(layers, sums_BLE, counts_BL)

    def add(self, other: "RoutingSums") -> None:
        """Add a further pass of the same rows."""
        self.sums_BLE = self.sums_BLE + other.sums_BLE
        self.counts_BL = self.counts_BL + other.counts_BL

    def join(self, other: "RoutingSums") -> None:
        """Put other rows below these."""
        self.sums_BLE = torch.cat([self.sums_BLE, other.sums_BLE])
        self.counts_BL = torch.cat([self.counts_BL, other.counts_BL])

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """Keep some of the rows."""
        self.sums_BLE, self.counts_BL = self.sums_BLE[rows.cpu()], self.counts_BL[rows.cpu()]

    def means(self, row: int) -> dict[str, list[float]]:
        """Return one row's mean weights in every layer that ran."""
        counts_L = self.counts_BL[row]
        means_LE = self.sums_BLE[row] / counts_L.clamp(min=1)[:, None]
        rows = zip(self.layers, counts_L.tolist(), means_LE.tolist(), strict=True)
        return {layer: means for layer, count, means in rows if count}


def _tokens(used: RoutingWeights) -> Float[Tensor, " B"]:
    """Return over how many tokens of each row these weights are a mean."""
    if used.mask_BT is None or used.weights_BTE.shape[1] == 1:
        return torch.ones(len(used.weights_BTE))
    return used.mask_BT.sum(1).float().cpu()
