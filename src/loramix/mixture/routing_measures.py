"""Measures of routing weights: the shares that they give the experts, and how even these are.

Weights need not sum to 1: sigmoid gates weigh every expert by itself, and a base slot keeps a part.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def shares(weights: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch E"]:
    """Return the weights of each row divided by their sum; a row of zeros stays zero."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def entropy(weights: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each row's shares in nats: 0 (one expert) to log E (all alike)."""
    p = shares(weights)
    entropies: Tensor = -torch.special.xlogy(p, p.clamp(min=1e-9)).sum(-1)
    return entropies
