"""Auxiliary losses: on the gates' weights, added to the language model's loss in training.

Axes: `L` layers, `B` rows, `E` experts, `K` tasks, those of one expert taken together. Weights are
read as shares: each row is divided by its sum, so that sigmoid gates and gates with a base slot
count as well.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.mixture.routing_measures import shares


def means_of_experts(
    task_means: Mapping[int, Float[Tensor, "L E"]], own: Sequence[int]
) -> Float[Tensor, "L K E"]:
    """Return the mean weights on the tasks of every expert that has some, in the order given.

    task_means: by the index of the task. own: the expert of every task.
    """
    of_experts: dict[int, list[Tensor]] = {}
    for task, means_LE in task_means.items():
        of_experts.setdefault(own[task], []).append(means_LE)
    return torch.stack([torch.stack(means).mean(0) for means in of_experts.values()], dim=1)


def imbalance(task_means_LKE: Float[Tensor, "L K E"]) -> Float[Tensor, ""]:
    """Return the layers' mean of E Σ_e u_e² - 1, in [0, E - 1].

    It is 0 where all experts are used alike, E - 1 where all tasks use one. An expert's use
    u_e is the mean over tasks of its mean share.

    The form of the load-balancing loss of Switch Transformers (Fedus et al. 2022,
    arXiv:2101.03961), with the gates' mean shares in the place of the fraction of routed tokens.
    """
    use_LE = shares(task_means_LKE).mean(1)
    return use_LE.shape[-1] * use_LE.square().sum(-1).mean() - 1


def label_loss(weights_LBE: Float[Tensor, "L B E"], expert: int) -> Float[Tensor, ""]:
    """Return the mean of -log(share) of the expert that belongs to these rows' task."""
    # clamped: a share may round to 0, whose log is infinite
    return -shares(weights_LBE)[..., expert].clamp(min=1e-9).log().mean()
