"""What a gate reads of its layer's input.

    prompt     one context for the whole row, pooled over its prompt tokens
    running    for every token, the mean over the tokens up to it
    token      every token itself
    reference  every token itself; the gate takes the mean of their scores

Rows may be packed, that is, hold several samples: each is then read as if it were a row of its own.

Axes: `B` batch, `T` tokens, `D` width, `S` samples packed into a row, `F` = D + 1: a sum and a
count.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.pooling import AttentionPooling, unit_scale


def read(
    config: GateConfig,
    hidden_BTD: Float[Tensor, "B T D"],
    mask_BT: Bool[Tensor, "B T"],
    state_BF: Float[Tensor, "B F"] | None = None,
    segments_BT: Int[Tensor, "B T"] | None = None,
    pooling: AttentionPooling | None = None,
) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B F"] | None]:
    """Return the contexts of a layer's input, and the state with which a running mean goes on.

    There is one context for each token. A prompt gate has one for the whole row, of the tokens
    where `mask_BT` is true, or one for each sample of a packed row.
    pooling: of a prompt gate; None: the mean.
    """
    with in_float32(hidden_BTD):
        match config.context:
            case "prompt":
                if pooling is not None:
                    return pooling(hidden_BTD, members(mask_BT, segments_BT)), None
                if segments_BT is None:
                    return unit_scale(masked_mean(hidden_BTD, mask_BT)), None
                return unit_scale(segment_means(hidden_BTD, mask_BT, segments_BT)), None
            case "running":
                mean_BTD, state_BF = running_mean(hidden_BTD, mask_BT, state_BF, segments_BT)
                return unit_scale(mean_BTD), state_BF
            case "token":
                return unit_scale(hidden_BTD.float()), None
            case "reference":
                if segments_BT is not None:
                    raise MixtureError(
                        "the reference gate averages over whole rows, and these rows hold several "
                        "samples each; give every sample a row, or use another gate context"
                    )
                return hidden_BTD.float(), None


def masked_mean(
    values_BTD: Float[Tensor, "B T D"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1 D"]:
    """Return the float32 mean over the tokens where `mask_BT` is true; zeros in a row without."""
    shares_BT = mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1)
    with in_float32(values_BTD):  # one pass over the values, and no copy of them
        return torch.bmm(shares_BT[:, None], values_BTD.float())


def segment_means(
    values_BTD: Float[Tensor, "B T D"],
    mask_BT: Bool[Tensor, "B T"],
    segments_BT: Int[Tensor, "B T"],
) -> Float[Tensor, "B S D"]:
    """Return the float32 mean of each packed sample over its tokens where `mask_BT` is true.

    segments_BT: the number of each token's sample in its row, from 0.
    """
    member_BST = members(mask_BT, segments_BT)
    shares_BST = member_BST / member_BST.sum(-1, keepdim=True).clamp(min=1)
    return torch.bmm(shares_BST, values_BTD.float())


def members(
    mask_BT: Bool[Tensor, "B T"], segments_BT: Int[Tensor, "B T"] | None
) -> Bool[Tensor, "B S T"]:
    """Return which of the tokens where `mask_BT` is true belong to each sample of a row."""
    if segments_BT is None:
        return mask_BT[:, None]
    samples = int(segments_BT.max()) + 1
    numbers_S = torch.arange(samples, device=segments_BT.device)
    return (segments_BT[:, None] == numbers_S[:, None]) & mask_BT[:, None]


def spread(
    weights_BSE: Float[Tensor, "B S E"], segments_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "B T E"]:
    """Return each packed sample's weights at all of its tokens."""
    index_BTE = segments_BT[..., None].expand(-1, -1, weights_BSE.shape[-1])
    return weights_BSE.gather(1, index_BTE)


def running_mean(
    values_BTD: Float[Tensor, "B T D"],
    mask_BT: Bool[Tensor, "B T"],
    state_BF: Float[Tensor, "B D+1"] | None = None,
    segments_BT: Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D+1"]]:
    """Return, for every token, the float32 mean of the valid tokens up to it; and the next state.

    The state is the sum of all valid tokens so far and, in its last column, their number.
    """
    mask_BT1 = mask_BT[..., None]
    ones_BT1 = torch.ones_like(mask_BT1, dtype=torch.float32)
    counted_BTF = torch.cat([values_BTD.float(), ones_BT1], -1).masked_fill(~mask_BT1, 0.0)
    sums_BTF = counted_BTF.cumsum(1)
    if segments_BT is not None:
        starts_BTF = segment_starts(segments_BT)[..., None].expand_as(sums_BTF)
        sums_BTF = sums_BTF - (sums_BTF - counted_BTF).gather(1, starts_BTF)
    if state_BF is not None:
        sums_BTF = sums_BTF + state_BF[:, None]
    return sums_BTF[..., :-1] / sums_BTF[..., -1:].clamp(min=1), sums_BTF[:, -1]


def in_float32(values: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from computing with fewer bits inside the block."""
    kind = values.device.type  # entering autocast takes longer than a gate does
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def segment_starts(segments_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return the index of the first token of each token's sample."""
    places_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = segments_BT.diff(dim=1, prepend=segments_BT[:, :1] - 1) != 0
    return torch.where(begins_BT, places_T, 0).cummax(1).values
