"""The verdict on a mixture: what its gates do with examples that they have not learned from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from loramix.assembly.examples import Examples
from loramix.data.tokens.batches import Encoded, generation_batch
from loramix.data.tokens.encoding import encode
from loramix.experiment.answers import Loss, mean_loss, target_losses
from loramix.experiment.paired import Difference, difference
from loramix.experiment.progress import Bar
from loramix.mixture.model import MixtureModel

BATCH = 8
JUDGED = 8  # held-out examples of each expert whose losses are measured
RIVALS = 3  # other experts that are tried on them: those with the largest weights
ALIKE = 0.25  # of the weight on one expert's prompts, from which another cannot be told apart


@dataclass(frozen=True)
class Losses:
    """Mean losses per target token on one expert's held-out examples.

    other: of the best other expert, `other_name`, of the few that get most weight; None where there
        is no other.
    behind: mixture − own. harm: own − base.
    """

    base: float
    own: float
    other: float | None
    other_name: str | None
    uniform: float
    mixture: float
    behind: Difference
    harm: Difference

    @property
    def share_of_gain(self) -> float | None:
        """(base − mixture) / (base − own); None where the expert gains nothing."""
        gain = self.base - self.own
        return (self.base - self.mixture) / gain if gain > 0 else None


@dataclass(frozen=True)
class ExpertVerdict:
    """What the mixture does with one expert's held-out examples.

    weights: the mean weight of every expert, over prompts and layers.
    losses: None where the examples have no answers.
    """

    expert: str
    examples: int
    weights: Mapping[str, float]
    losses: Losses | None

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "ExpertVerdict":
        """Return the verdict whose `dataclasses.asdict` this is."""
        losses = held["losses"] and dict(held["losses"])
        for key in ("behind", "harm"):
            if losses:
                losses[key] = Difference(**losses[key])
        return cls(**{**held, "losses": losses and Losses(**losses)})


def judge(mixture: MixtureModel, held_out: Mapping[str, Examples]) -> list[ExpertVerdict]:
    """Return the verdict on every expert that has held-out examples."""
    was_training = mixture.training
    mixture.eval()
    encoded = {name: encoded_examples(mixture, each) for name, each in held_out.items()}
    answered = [name for name, each in held_out.items() if each.answered]
    rivals = min(len(mixture.experts) - 1, RIVALS)
    bar = Bar("verdict", sum(1 + (name in answered) * (4 + rivals) for name in held_out))
    verdicts = []
    for name, rows in encoded.items():
        weights = _mean_weights(mixture, rows)
        bar.step()
        losses = None
        if name in answered:
            others = sorted(weights.keys() - {name}, key=weights.__getitem__, reverse=True)
            losses = _losses(mixture, name, others[:rivals], rows[:JUDGED], bar)
        verdicts.append(ExpertVerdict(name, len(rows), weights, losses))
    bar.close()
    mixture.train(was_training)
    return verdicts


def warnings(verdicts: Sequence[ExpertVerdict]) -> list[str]:
    """Return in words what is wrong with a mixture or its experts."""
    return [warning for verdict in verdicts for warning in _warnings(verdict)]


def encoded_examples(mixture: MixtureModel, examples: Examples) -> list[Encoded]:
    """Return an expert's examples as token ids."""
    causal, chat = not mixture.config.is_encoder_decoder, mixture.prompting.chat
    return [
        encode(mixture.tokenizer, examples.task, text, target, causal=causal, chat=chat)
        for text, target in examples.pairs
    ]


def _warnings(verdict: ExpertVerdict) -> Iterator[str]:
    name, losses = verdict.expert, verdict.losses
    for other, weight in verdict.weights.items():
        if other != name and weight >= ALIKE:
            yield (
                f"'{name}' and '{other}' cannot be told apart: on prompts of '{name}', '{other}' "
                f"gets {weight:.0%} of the weight; give examples that differ more, or leave one out"
            )
    if losses is None:
        return
    if losses.harm.positive:
        yield (
            f"'{name}' is worse than the base on its own examples ({losses.own:.3f} against "
            f"{losses.base:.3f}): is it the right adapter, asked as it was trained (prompt "
            "template, chat template)?"
        )
    if losses.behind.positive:
        yield (
            f"the mixture is behind '{name}' on its examples ({losses.mixture:.3f} against "
            f"{losses.own:.3f}, more than noise); give more examples of it"
        )


def _losses(
    mixture: MixtureModel, name: str, rivals: Sequence[str], rows: Sequence[Encoded], bar: Bar
) -> Losses:
    names = mixture.expert_names

    def measured(weights: Mapping[str, float] | None) -> list[Loss]:
        held: AbstractContextManager[None] = (
            nullcontext() if weights is None else mixture.fixed(weights)
        )
        with held:
            found = target_losses(mixture, mixture.tokenizer, rows, batch_size=BATCH)
        bar.step()
        return found

    base, own = measured({}), measured({name: 1.0})
    uniform = measured(dict.fromkeys(names, 1 / len(names)))
    mixed = measured(None)
    others = {other: mean_loss(measured({other: 1.0})) for other in rivals}
    best = min(others, key=others.__getitem__, default=None)
    return Losses(
        base=mean_loss(base),
        own=mean_loss(own),
        other=None if best is None else others[best],
        other_name=best,
        uniform=mean_loss(uniform),
        mixture=mean_loss(mixed),
        behind=difference(mixed, own),
        harm=difference(own, base),
    )


@torch.no_grad()
def _mean_weights(mixture: MixtureModel, rows: Sequence[Encoded]) -> dict[str, float]:
    """Return the mean weight of every expert, over prompts and layers."""
    causal = not mixture.config.is_encoder_decoder
    sums = torch.zeros(len(mixture.experts))
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        batch = generation_batch(mixture.tokenizer, part, causal)
        batch = {key: value.to(mixture.device) for key, value in batch.items()}
        weights_LBE = torch.stack(list(mixture.mean_weights(**batch).values()))
        sums += weights_LBE.mean(0).sum(0).cpu()
    return dict(zip(mixture.expert_names, (sums / len(rows)).tolist(), strict=True))
