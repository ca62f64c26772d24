"""Auxiliary losses: on the gates' weights, added to the language model's loss in training.

Axes: `L` layers, `B` rows, `E` experts, `K` tasks. Weights are read as shares: each row is divided
by its sum, so that sigmoid gates and gates with a base slot count as well.
"""

from jaxtyping import Float
from torch import Tensor

from loramix.mixture.routing_measures import shares


def imbalance(task_means_LKE: Float[Tensor, "L K E"]) -> Float[Tensor, ""]:
    """Return the layers' mean of E Σ_e u_e² - 1: 0 (all experts used alike) to E - 1 (one for all
    tasks).

    An expert's use u_e is the mean over tasks of its mean share.

    The form of the load-balancing loss of Switch Transformers (Fedus et al. 2022,
    arXiv:2101.03961), with the gates' mean shares in the place of the fraction of routed tokens.
    """
    use_LE = shares(task_means_LKE).mean(1)
    return use_LE.shape[-1] * use_LE.square().sum(-1).mean() - 1


def label_loss(weights_LBE: Float[Tensor, "L B E"], expert: int) -> Float[Tensor, ""]:
    """Return the mean of -log(share) of the expert that belongs to these rows' task."""
    return -shares(weights_LBE)[..., expert].clamp(min=1e-9).log().mean()
