"""Losses on what gates decide, to be added to the language model's loss in training.

Axes: `B` rows, `E` experts, `K` tasks. Weights are read as shares: each row is divided by its sum, so that sigmoid
gates and gates with a base slot count as well.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def shares(weights: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """Return the weights of each row divided by their sum; a row of zeros stays zero."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def entropy(weights: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """Return the mean entropy of the rows in nats, 0 (one expert each) to log E (all alike)."""
    p = shares(weights)
    rows: Tensor = -torch.special.xlogy(p, p.clamp(min=1e-9)).sum(-1)
    return rows.mean()


def imbalance(task_means: Float[Tensor, "K E"]) -> Float[Tensor, ""]:
    """Return E Σ_e u_e² - 1 of the experts' use u, the mean over tasks: 0 (all used alike) to E - 1 (one for all).

    The form of the load-balancing loss of Switch Transformers (Fedus et al. 2022, arXiv:2101.03961), with the gates'
    mean shares in the place of the fraction of routed tokens.
    """
    use = shares(task_means).mean(0)
    return len(use) * (use * use).sum() - 1


def label_loss(weights: Float[Tensor, "B E"], expert: int) -> Float[Tensor, ""]:
    """Return the mean of -log(share) of the expert that belongs to these rows' task."""
    return -shares(weights)[:, expert].clamp(min=1e-9).log().mean()
