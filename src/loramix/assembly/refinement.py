"""Refinement: gates trained on answers from where prototypes have put them, and never below.

Of each gate, training learns how sharp the rule is, and how far each expert is to be preferred: few
numbers, which cannot unlearn what the prototypes know, as steps of all parameters do.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix.data.tokens.batches import Encoded
from loramix.experiment.answers import Loss, mean_loss, target_losses
from loramix.experiment.paired import gains, mean_of_means
from loramix.experiment.progress import Bar
from loramix.experiment.recipe import TrainSpec
from loramix.experiment.training.tokens import as_samples
from loramix.experiment.training.trainer import learn
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import soften

log = logging.getLogger("loramix")
SPEC = TrainSpec(epochs=1, batch_size=8, learning_rate=1e-2, schedule="linear")
BATCH = 8


class ScaledScores(nn.Module):
    """A gate's scores times exp(log_scale), plus a shift for each expert; the scores are frozen."""

    def __init__(self, scores: nn.Linear) -> None:
        super().__init__()
        self.scores = scores.requires_grad_(False)
        self.log_scale = nn.Parameter(torch.zeros((), device=scores.weight.device))
        self.shift = nn.Parameter(torch.zeros_like(scores.bias))

    def forward(self, hidden: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch S"]:
        """Return the scores of all slots."""
        scaled: Tensor = self.log_scale.exp() * self.scores(hidden) + self.shift
        return scaled

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Return the linear layer with these scores, trainable."""
        self.scores.weight *= self.log_scale.exp()
        self.scores.bias.copy_(self.log_scale.exp() * self.scores.bias + self.shift)
        return self.scores.requires_grad_(True)


@dataclass(frozen=True)
class Refinement:
    """What training has done to the mean loss on held-out examples, by expert.

    kept: whether the trained gates are; otherwise they are where they started.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    kept: bool


def refine(
    mixture: MixtureModel,
    learned: Mapping[str, Sequence[Encoded]],
    held_out: Mapping[str, Sequence[Encoded]],
    *,
    folder: Path,
    seed: int,
) -> Refinement:
    """Train the gates on the answers; go back to the start unless held-out examples gain by it.

    What gains are is said at `loramix.experiment.paired.gains`; the parts are the experts.
    """
    start = {key: value.clone() for key, value in mixture.gate_state().items()}
    before = _losses(mixture, held_out, "held-out examples before training")
    if mixture.prototypes is not None:
        soften(mixture)
    with _scale_and_shift(mixture):
        learn(
            mixture,
            mixture.tokenizer,
            as_samples(list(learned.values())),
            as_samples(list(held_out.values())),
            SPEC,
            seed=seed,
            dtype=str(mixture.base.dtype).removeprefix("torch."),
            folder=folder,
            label="gates",
        )
    mixture.eval()
    after = _losses(mixture, held_out, "held-out examples after training")
    kept = gains(before.values(), after.values())
    if not kept:
        mixture.load_gate_state(start)
    log.info(
        "training: mean loss on held-out examples %.4f before, %.4f after; %s",
        *(mean_of_means(each.values()) for each in (before, after)),
        "kept" if kept else "not kept: the gates stay where they were",
    )
    means = [{name: mean_loss(part) for name, part in each.items()} for each in (before, after)]
    return Refinement(means[0], means[1], kept)


@contextmanager
def _scale_and_shift(mixture: MixtureModel) -> Iterator[None]:
    """Let training move nothing but the scale and the shifts of every gate's scores."""
    gates = list(mixture.gates.values())
    scaled = [ScaledScores(gate.score) for gate in gates]
    for gate, scores in zip(gates, scaled, strict=True):
        gate.lift.requires_grad_(False)
        gate.register_module("score", scores)
    mixture.train()
    try:
        yield
    finally:
        for gate, scores in zip(gates, scaled, strict=True):
            gate.lift.requires_grad_(True)
            gate.register_module("score", scores.folded())


def _losses(
    mixture: MixtureModel, rows: Mapping[str, Sequence[Encoded]], label: str
) -> dict[str, list[Loss]]:
    losses, bar = {}, Bar(label, len(rows))
    for name, each in rows.items():
        losses[name] = target_losses(mixture, mixture.tokenizer, each, batch_size=BATCH)
        bar.step()
    bar.close()
    return losses
