"""Nearest means: what gates remember of their experts' prompts, and the rule they make of it.

With c the context that a gate reads, μ_e the mean context of expert e's prompts, μ̄ the mean of
these, and Σ how the contexts of one expert scatter,

    score_e = κ ((Σ + λ)⁻¹ (μ_e - μ̄)·c - (|μ_e|² - mean |μ|²)/2)    with |μ|² = μ·(Σ + λ)⁻¹ μ

which is linear discriminant analysis: the log-posterior of Gaussians of one shape around the means,
up to what all experts share. Directions in which prompts of one expert differ anyway, such as their
wording, count less. Every expert needs one hidden unit of the gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.gate import ContextGate

_ALIKE = 1e-6  # mean squared distance of two means, over the width, below which nothing tells them
_MEAN, _SCATTER = "mean/", "scatter/"
_COUNTS, _SHARPNESS = "prompts", "sharpness"
RIDGE = 1.0  # λ, of the mean variance of a context
RANK = 16  # directions of Σ that are kept of one expert, and of all together at least
RANK_OF_EACH = 2  # directions of all together, for every expert; beyond them λ outweighs Σ


@dataclass(frozen=True)
class Prototypes:
    """The mean contexts of every expert's prompts, by the layer that reads them.

    Layers that no expert adapts yet are among them, for experts that come later.

    means: (E, D) by layer. scatters: (R, D) by layer, the main directions in which contexts of one
        expert differ, each of length √(σ²/(σ² + λ)) for a variance of σ².
    counts: of the prompts; 0 for an expert of which none are known, whose rows are zero.
    sharpness: in nats, see `loramix.mixture.prototypes.from_examples`.
    """

    means: Mapping[str, Float[Tensor, "E _"]]  # widths differ between layers
    scatters: Mapping[str, Float[Tensor, "_ _"]]
    counts: Int[Tensor, " E"]
    sharpness: float

    def rearranged(self, order: Sequence[int | None]) -> "Prototypes":
        """Return those of experts order[0], order[1], …, where None is one without prompts."""
        return Prototypes(
            {reader: _rows(means_ED, order) for reader, means_ED in self.means.items()},
            self.scatters,
            _rows(self.counts, order),
            self.sharpness,
        )

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, for a file."""
        state = {_COUNTS: self.counts, _SHARPNESS: torch.tensor(self.sharpness)}
        state |= {_MEAN + reader: means_ED for reader, means_ED in self.means.items()}
        return state | {_SCATTER + reader: each for reader, each in self.scatters.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Prototypes":
        """Return the prototypes of a `state`."""
        lacking = {_COUNTS, _SHARPNESS} - state.keys()
        if lacking or state[_COUNTS].dim() != 1 or state[_SHARPNESS].numel() != 1:
            raise MixtureError("the prototypes of this mixture are damaged; fit it again")
        parts: dict[str, dict[str, Tensor]] = {_MEAN: {}, _SCATTER: {}}
        for name, tensor in state.items():
            for start, part in parts.items():
                if name.startswith(start):
                    part[name.removeprefix(start)] = tensor
        if any(len(each) != len(state[_COUNTS]) for each in parts[_MEAN].values()):
            raise MixtureError("the prototypes of this mixture are of another number of experts")
        sharpness = round(float(state[_SHARPNESS]), 6)
        return cls(parts[_MEAN], parts[_SCATTER], state[_COUNTS], sharpness)


def write_rule(
    gate: ContextGate,
    means_ED: Float[Tensor, "E D"],
    scatter_RD: Float[Tensor, "R D"],
    sharpness: float,
) -> None:
    """Let a gate follow the nearest mean; stay uniform where the means are alike."""
    experts = len(means_ED)
    reset(gate)
    scale = _scale(gate, means_ED, scatter_RD, sharpness)
    if scale is None:  # as for a decoder's first token
        return
    for expert in range(experts):
        _write_mean(gate, expert, expert, means_ED[expert], means_ED, scatter_RD, scale)


def write_newcomer(
    gate: ContextGate,
    means_ED: Float[Tensor, "E D"],
    scatter_RD: Float[Tensor, "R D"],
    sharpness: float,
) -> None:
    """Give a gate's last expert the contexts around its mean, and leave the others theirs.

    The others' rows stay as they are, trained or not. The newcomer's score is that of the nearest
    mean, with a threshold half-way between its own mean and that of the nearest other.

    means_ED: of all experts, the newcomer's last.
    """
    old_ED, new_D = means_ED[:-1], means_ED[-1]
    newcomer = len(old_ED)
    gate.prior[newcomer] = gate.prior[:newcomer].mean()
    gate.train_unequal_priors()
    scale = _scale(gate, old_ED, scatter_RD, sharpness)
    if scale is None:  # the old ones are alike here: any of them is as good
        scale = _scale(gate, means_ED, scatter_RD, sharpness)
    if scale is None:
        return
    _write_mean(gate, newcomer, _free_unit(gate), new_D, old_ED, scatter_RD, scale)
    scores_EE = _scores(gate, means_ED)  # of every expert (column) at every mean (row)
    lead = scores_EE[newcomer, newcomer] - scores_EE[newcomer, :newcomer].max()
    keeps_E = scores_EE[:newcomer, :newcomer].diagonal() - scores_EE[:newcomer, newcomer]
    shift = (keeps_E.min() - lead) / 2  # as far below its rival there as above it here
    gate.score.bias[newcomer] += shift * gate.config.temperature


def write_linear(
    gate: ContextGate,
    expert: int,
    unit: int,
    weight_D: Float[Tensor, " D"],
    bias: Float[Tensor, ""],
) -> None:
    """Write score_expert = weight·c + bias into one hidden unit.

    The ReLU passes on whatever is above zero, so the unit gets a bias above its largest possible
    negative input: contexts have length √D at most.
    """
    shift = weight_D.norm() * len(weight_D) ** 0.5
    gate.lift.weight[unit] = weight_D
    gate.lift.bias[unit] = shift
    gate.score.weight[expert] = 0.0
    gate.score.weight[expert, unit] = 1.0
    gate.score.bias[expert] = bias - shift


def without_effect(gate: ContextGate) -> list[int]:
    """Return the hidden units that no score uses."""
    used_H = (gate.score.weight != 0).any(0)
    return [unit for unit, used in enumerate(used_H.tolist()) if not used]


def reset(gate: ContextGate) -> None:
    """Let nothing but the rule to be written decide: other hidden units start without effect."""
    gate.score.weight.zero_()
    if gate.score.bias is not None:
        gate.score.bias.zero_()
    gate.prior.fill_(1.0)
    gate.train_unequal_priors()


def scatter_of(
    differences_ND: Float[Tensor, "N D"], variance: float, experts: int
) -> Float[Tensor, "R D"]:
    """Return the main directions of contexts around their means, see `Prototypes`.

    variance: of a context in all directions, of which λ is a part.
    """
    ridge = RIDGE * variance / differences_ND.shape[1]
    main_RD = main_directions(differences_ND, max(RANK, RANK_OF_EACH * experts))
    squares_R = main_RD.square().sum(1, keepdim=True)  # variances
    return main_RD / (squares_R + ridge).clamp(min=1e-12).sqrt()


def main_directions(differences_ND: Float[Tensor, "N D"], rank: int) -> Float[Tensor, "R D"]:
    """Return at most `rank` vectors whose outer products add up to almost the differences'."""
    _, vectors_NN = torch.linalg.eigh(differences_ND @ differences_ND.T)
    main_RD: Tensor = vectors_NN[:, -rank:].T @ differences_ND
    return main_RD


def _discounted(
    vectors_ND: Float[Tensor, "*N D"], scatter_RD: Float[Tensor, "R D"]
) -> Float[Tensor, "*N D"]:
    """Return λ (Σ + λ)⁻¹ v."""
    return vectors_ND - (vectors_ND @ scatter_RD.T) @ scatter_RD


def _scale(
    gate: ContextGate,
    means_ED: Float[Tensor, "E D"],
    scatter_RD: Float[Tensor, "R D"],
    sharpness: float,
) -> float | None:
    """Return κ, with which an expert's own mean scores `sharpness` nats above another's, on
    average; None where the means are alike.
    """
    experts, width = means_ED.shape
    centred_ED = means_ED - means_ED.mean(0)
    squares = (centred_ED * _discounted(centred_ED, scatter_RD)).sum()
    apart = 2 * float(squares) / max(experts - 1, 1)  # mean squared distance
    return None if apart < _ALIKE * width else 2 * sharpness * gate.config.temperature / apart


def _write_mean(
    gate: ContextGate,
    expert: int,
    unit: int,
    mean_D: Float[Tensor, " D"],
    others_ED: Float[Tensor, "E D"],
    scatter_RD: Float[Tensor, "R D"],
    scale: float,
) -> None:
    """Write one expert's score into one hidden unit.

    others_ED: the means whose share in all scores is left out; the same for every row of a gate.
    """
    lengths = (others_ED * _discounted(others_ED, scatter_RD)).sum(1)
    length = mean_D @ _discounted(mean_D, scatter_RD) - lengths.mean()
    direction_D = _discounted(mean_D - others_ED.mean(0), scatter_RD)
    write_linear(gate, expert, unit, scale * direction_D, -scale * length / 2)


def _free_unit(gate: ContextGate) -> int:
    free = without_effect(gate)
    assert free, "a gate is widened before an expert is added to it"
    return free[0]


def _scores(gate: ContextGate, contexts_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
    """Return the experts' scores for contexts, in nats, their priors included."""
    scores = gate.score(gate.lift(contexts_ND).relu()) / gate.config.temperature
    leading: Tensor = (scores + gate.prior.clamp(min=1e-6).log())[:, : gate.experts]
    return leading


def _rows(tensor: Tensor, order: Sequence[int | None]) -> Tensor:
    blank = torch.zeros_like(tensor[0])
    return torch.stack([blank if row is None else tensor[row] for row in order])
