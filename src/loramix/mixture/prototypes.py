"""Gates that know their experts before any training: from prompts, or from the adapters alone.

Both write a rule into the gate's perceptron, which training can then refine. With c the context
that a gate reads:

    from_examples   score_e = κ (μ_e·c - |μ_e|²/2) + const, with μ_e the mean context of expert e's
                    examples: the log-posterior of equal Gaussians around the means, and in effect
                    the nearest mean
    from_adapters   score_e = κ |v_e·c|, with v_e the direction that B_e A_e amplifies most, its
                    first right singular vector (Arrow: Ostapenko et al. 2024, arXiv:2405.11157)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.errors import MixtureError, did_you_mean
from loramix.mixture.context import masked_mean
from loramix.mixture.gate import ContextGate
from loramix.mixture.groups import in_decoder
from loramix.mixture.model import MixtureModel
from loramix.mixture.problems import Init, gate_problems
from loramix.storage.experts import LowRank

Examples = Sequence[str | Mapping[str, Tensor]]


@torch.no_grad()
def from_examples(
    mixture: MixtureModel, examples: Mapping[str, Examples], *, sharpness: float = 4.0
) -> None:
    """Set every gate to prefer the expert whose examples its context is most like.

    examples: for every expert some prompts, as texts or as the model's inputs (a few suffice).
    sharpness: how far, in nats, the score of an expert's own mean context lies above another's, on
        average.

    Raises MixtureError if an expert has no examples, or if a gate has fewer hidden units than
    experts.
    """
    names = mixture.expert_names
    for name in examples:
        if name not in names:
            raise MixtureError(f"examples: there is no expert '{name}'{did_you_mean(name, names)}")
    missing = [name for name in names if not examples.get(name)]
    if missing:
        raise MixtureError(
            f"examples: there are none for {', '.join(missing)}; every expert needs some"
        )
    _check(mixture, "prototype")
    means = [_mean_contexts(mixture, index, examples[name]) for index, name in enumerate(names)]
    for reader, gate in mixture.gates.items():
        _nearest_mean(gate, torch.stack([mean[reader] for mean in means]), sharpness)


@torch.no_grad()
def from_adapters(mixture: MixtureModel, *, sharpness: float = 4.0) -> None:
    """Set every gate to prefer the expert whose update would amplify its context most, without any
    data.

    sharpness: κ; contexts have root mean square 1, so that |v_e·c| is about 1 where there is
        nothing to prefer.

    Raises MixtureError if gates have fewer than two hidden units per expert, or read something else
    than their layer's
    input: those of a decoder with prompt context read the encoder's output.
    """
    _check(mixture, "arrow")
    for reader, gate in mixture.gates.items():
        directions = [
            _direction(expert.updates.get(reader), gate.width) for expert in mixture.experts
        ]
        _amplified(gate, torch.stack(directions), sharpness)


def _check(mixture: MixtureModel, init: Init) -> None:
    """Raise MixtureError if these gates cannot start like this."""
    found = gate_problems(
        mixture.gate_config,
        experts=len(mixture.experts),
        init=init,
        encoder_decoder=any(in_decoder(mixture.base, reader) for reader in mixture.gates),
    )
    for setting, problem in found:
        raise MixtureError(f"{setting}: {problem}")


def _mean_contexts(
    mixture: MixtureModel, expert: int, examples: Examples
) -> dict[str, Float[Tensor, " D"]]:
    """Return what each gate reads of an expert's prompts, the mean over their real tokens and then
    over prompts.
    """
    sums: dict[str, Tensor] = {}
    rows = 0
    for example in examples:
        inputs = mixture.text_inputs(example) if isinstance(example, str) else dict(example)
        with _contexts(mixture, expert) as contexts:
            mixture.weights(**inputs)
        rows += len(inputs["input_ids"])
        for reader, context_BD in contexts.items():
            sums[reader] = sums.get(reader, 0) + context_BD.sum(0)
    return {reader: total / rows for reader, total in sums.items()}


@contextmanager
def _contexts(mixture: MixtureModel, expert: int) -> Iterator[dict[str, Float[Tensor, "B D"]]]:
    """Collect, by reader, the mean context of each row that the gates read inside the block.

    The gates choose `expert` there, so that deeper layers read what they will read once the gates
    are right.
    """
    found: dict[str, Tensor] = {}

    def choose(
        reader: str, gate: ContextGate, args: tuple[Tensor, Tensor], output: Tensor
    ) -> Tensor:
        context, mask = args
        if context.shape[1] != mask.shape[1]:  # one for the whole row
            mask = torch.ones_like(context[..., 0], dtype=torch.bool)
        found.setdefault(reader, masked_mean(context, mask)[:, 0])
        chosen = torch.zeros_like(output)
        chosen[..., expert] = 1.0
        return chosen

    hooks = [
        gate.register_forward_hook(partial(choose, reader))
        for reader, gate in mixture.gates.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _nearest_mean(gate: ContextGate, means_ED: Float[Tensor, "E D"], sharpness: float) -> None:
    """Write score_e = κ (μ_e·c - |μ_e|²/2), up to what all experts share, into the perceptron.

    The ReLU passes on whatever is above zero, so every unit gets a bias above its largest possible
    negative input: contexts have length √D at most.
    """
    experts, width = means_ED.shape
    centred_ED = means_ED - means_ED.mean(0)
    apart = (
        2 * centred_ED.square().sum() / max(experts - 1, 1)
    )  # mean squared distance between two means
    _reset(gate)
    if (
        apart < 1e-6 * width
    ):  # the examples look alike here, as a decoder's first token does: stay uniform
        return
    scale = 2 * sharpness * gate.config.temperature / apart
    shift_E = scale * centred_ED.norm(dim=1) * width**0.5
    gate.lift.weight[:experts] = scale * centred_ED
    gate.lift.bias[:experts] = shift_E
    gate.score.weight[:experts, :experts] = torch.eye(experts, device=gate.prior.device)
    gate.score.bias[:experts] = (
        -shift_E - scale * (means_ED.square().sum(1) - means_ED.square().sum(1).mean()) / 2
    )


def _amplified(gate: ContextGate, directions_ED: Float[Tensor, "E D"], sharpness: float) -> None:
    """Write score_e = κ |v_e·c| = κ (relu(v_e·c) + relu(-v_e·c)) into the perceptron."""
    experts = len(directions_ED)
    identity = torch.eye(experts, device=gate.prior.device)
    _reset(gate)
    gate.lift.weight[: 2 * experts] = torch.cat([directions_ED, -directions_ED])
    if gate.lift.bias is not None:
        gate.lift.bias[: 2 * experts] = 0.0
    gate.score.weight[:experts, : 2 * experts] = (
        torch.cat([identity, identity], 1) * sharpness * gate.config.temperature
    )


def _reset(gate: ContextGate) -> None:
    """Let nothing but the rule to be written decide: other hidden units start without effect."""
    gate.score.weight.zero_()
    if gate.score.bias is not None:
        gate.score.bias.zero_()
    gate.prior.fill_(1.0)
    gate.train_unequal_priors()


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
