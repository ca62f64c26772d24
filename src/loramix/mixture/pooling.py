"""Attention pooling: one context of a prompt, in which a request counts beside a long text.

The mean over a prompt's tokens is the mean over its text, which a few words of request hardly move:
"a haiku about: <abstract>" reads like an abstract. Here the tokens that ask for something count:

    context = u(u(Σ_t a_t x_t) + x_T + u(Σ_t x_t)),    a = softmax_t(q · x_t)

x_t are the tokens at root mean square 1, to which u scales; x_T is the last one, which has read all
others; and the query q is learned, see `loramix.mixture.queries`. At q = 0 all tokens are attended
alike. The mean stays, as words that no query has seen may say the rest.

Axes: `B` batch, `T` tokens, `D` width, `S` samples packed into a row.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """The context of each sample, as the gate of one layer pools it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(
        self, hidden_BTD: Float[Tensor, "B T D"], member_BST: Bool[Tensor, "B S T"]
    ) -> Float[Tensor, "B S D"]:
        """Return a float32 context of root mean square 1 for each sample.

        member_BST: the tokens of each; zeros are returned for one that has none.
        """
        tokens_BTD = unit_scale(hidden_BTD.float())
        shares_BST = [
            self._attended(tokens_BTD, member_BST),
            last_of(member_BST).float(),
            member_BST.float(),
        ]
        parts_BSD = torch.bmm(torch.cat(shares_BST, 1), tokens_BTD).chunk(len(shares_BST), 1)
        return unit_scale(torch.stack([unit_scale(part_BSD) for part_BSD in parts_BSD]).sum(0))

    def _attended(
        self, tokens_BTD: Float[Tensor, "B T D"], member_BST: Bool[Tensor, "B S T"]
    ) -> Float[Tensor, "B S T"]:
        scores_B1T = (tokens_BTD @ self.query)[:, None]
        lowest = torch.finfo(scores_B1T.dtype).min  # not -inf: a sample may have no tokens
        return scores_B1T.masked_fill(~member_BST, lowest).softmax(-1) * member_BST


def last_of(member_BST: Bool[Tensor, "B S T"]) -> Bool[Tensor, "B S T"]:
    """Return which token is the last of each sample."""
    places_T = torch.arange(member_BST.shape[-1], device=member_BST.device)
    last_BS1 = places_T.where(member_BST, -1).amax(-1, keepdim=True)
    return member_BST & (places_T == last_BS1)


def unit_scale(context: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Scale each context to root mean square 1, so that one learning rate suits every base."""
    return nn.functional.rms_norm(context, context.shape[-1:], eps=1e-6)
