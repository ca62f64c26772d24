"""Weights that are learned and then the same for every input: a part of several baselines."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loramix.bases.loading import Base
from loramix.config import GateConfig
from loramix.experiment.graph import TRAINING_OUTPUTS, Settings
from loramix.experiment.recipe import Recipe, TrainSpec
from loramix.experiment.run import Run
from loramix.experiment.training.trainer import train
from loramix.mixture.model import MixtureModel
from loramix.storage.files import atomic_file

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

FILE = "weights.safetensors"  # (E,) by layer
LEAVES = (FILE, *TRAINING_OUTPUTS)


class LearnedWeights(MixtureModel):
    """A mixture whose gates have no say: its weights are parameters, which start at 1/E.

    per_layer: whether every layer has its own; otherwise all share theirs.
    """

    weights_LE: nn.Parameter
    per_layer: bool

    @classmethod
    def of(cls, run: Run, base: Base, *, per_layer: bool) -> "LearnedWeights":
        """Return the run's experts at uniform weights."""
        mixture = cls(
            base.model, run.experts(), GateConfig(), base_name=base.name, revision=base.revision
        )
        mixture.requires_grad_(False)
        rows, experts = len(mixture.layers) if per_layer else 1, len(mixture.experts)
        start_LE = torch.full((rows, experts), 1 / experts, device=mixture.device)
        mixture.register_parameter("weights_LE", nn.Parameter(start_LE))
        mixture.per_layer = per_layer
        return mixture

    def by_layer(self) -> dict[str, Float[Tensor, "1 E"]]:
        """Return the weights of every layer, as `fixed_layers` takes them."""
        shared = self.weights_LE.expand(len(self.layers), -1)
        return {name: row_E[None] for name, row_E in zip(self.layers, shared, strict=True)}

    def forward(self, *args: object, **inputs: object) -> "ModelOutput":
        """Return the base model's output with the experts at the weights as they are."""
        with self.fixed_layers(self.by_layer()):
            return super().forward(*args, **inputs)  # type: ignore[arg-type]


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the training."""
    return {"weights": _spec(recipe).model_dump(mode="json")}


def learn(run: Run, folder: Path, *, per_layer: bool, label: str) -> None:
    """Train the weights on the samples of the gates, and write them and the losses to `folder`."""
    recipe, base = run.recipe, run.load_base()
    mixture = LearnedWeights.of(run, base, per_layer=per_layer)
    train(
        run,
        mixture,
        base.tokenizer,
        _spec(recipe),
        recipe.routed,
        folder=folder,
        label=label,
        bare=recipe.gate.bare,
    )
    found = {name: row[0].detach().clone() for name, row in mixture.by_layer().items()}
    with atomic_file(folder / FILE) as file:
        save_file(found, file)


@contextmanager
def load(run: Run, folder: Path, base: Base) -> Iterator[MixtureModel]:
    """Yield the run's experts at the weights that were learned."""
    mixture = MixtureModel(
        base.model, run.experts(), GateConfig(), base_name=base.name, revision=base.revision
    )
    learned = load_file(folder / FILE)
    with mixture.fixed_layers({name: row[None] for name, row in learned.items()}):
        yield mixture


def _spec(recipe: Recipe) -> TrainSpec:
    """Return the training of the gates at the rate of the weights."""
    training = recipe.gate.model_dump(include=set(TrainSpec.model_fields))
    training["epochs"] = max(1, recipe.gate.epochs)  # gates may do without
    training["learning_rate"] = recipe.comparison.weights_learning_rate
    return TrainSpec.model_validate(training)
