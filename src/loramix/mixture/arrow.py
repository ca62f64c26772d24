"""Gates from the adapters alone: each expert where its own update would amplify most.

    score_e = κ |v_e·c| = κ (relu(v_e·c) + relu(-v_e·c))

with c the context that a gate reads and v_e the direction that B_e A_e amplifies most, its first
right singular vector (Arrow: Ostapenko et al. 2024, arXiv:2405.11157).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.mixture.gate import ContextGate
from loramix.mixture.means import reset
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import check_start
from loramix.storage.experts import LowRank


@torch.no_grad()
def from_adapters(mixture: MixtureModel, *, sharpness: float = 4.0) -> None:
    """Set every gate to prefer the expert whose update would amplify its context most, without any
    data.

    sharpness: κ; contexts have root mean square 1, so that |v_e·c| is about 1 where there is
        nothing to prefer.

    Raises MixtureError if gates have fewer than two hidden units per expert, or read something else
    than their layer's input: those of a decoder with prompt context read the encoder's output.
    """
    check_start(mixture, "arrow")
    for reader, gate in mixture.gates.items():
        directions = [
            _direction(expert.updates.get(reader), gate.width) for expert in mixture.experts
        ]
        _amplified(gate, torch.stack(directions), sharpness)
    mixture.prototypes = None


def _amplified(gate: ContextGate, directions_ED: Float[Tensor, "E D"], sharpness: float) -> None:
    """Write κ |v_e·c| into the perceptron."""
    experts = len(directions_ED)
    identity = torch.eye(experts, device=gate.prior.device)
    reset(gate)
    gate.lift.weight[: 2 * experts] = torch.cat([directions_ED, -directions_ED])
    if gate.lift.bias is not None:
        gate.lift.bias[: 2 * experts] = 0.0
    gate.score.weight[:experts, : 2 * experts] = (
        torch.cat([identity, identity], 1) * sharpness * gate.config.temperature
    )


def _direction(update: LowRank | None, width: int) -> Float[Tensor, " D"]:
    """Return the unit vector that an update amplifies most; zeros where there is none."""
    if update is None:
        return torch.zeros(width)
    # B A = B (L Qᵀ) with Aᵀ = Q Lᵀ, so its right singular vectors are Q times those of the small
    # matrix B L.
    orthogonal_DR, triangular_RR = torch.linalg.qr(update.down_RD.float().T)
    _, _, right_RR = torch.linalg.svd(update.up_OR.float() @ triangular_RR.T, full_matrices=False)
    direction: Tensor = orthogonal_DR @ right_RR[0]
    return direction
