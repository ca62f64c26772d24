"""Weights that are the same for every input: uniform, the best on validation samples, and LoraHub's
search.

`static` tries a grid of output-mixing weights. LoraHub (Huang et al. 2023, arXiv:2307.13269)
composes the matrices themselves, (Σ w_e B_e)(Σ w_e A_e), which is parameter mixing here, and
searches weights of either sign without gradients (CMA-ES) for the lowest loss on a few examples
plus 0.05 times the mean of |w|. It was made to fit one new task at a time; here it fits all tasks
at once, because a model that is not told the task has one set of weights.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from loramix.bases.loading import Base
from loramix.config import GateConfig, Mixing
from loramix.data.leaks import RECORD, record
from loramix.data.samples import Sample, read_manifest
from loramix.errors import MissingExtraError
from loramix.experiment.answers import encode_all, mean_loss, target_losses
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base
from loramix.mixture.model import MixtureModel
from loramix.storage.experts import load_expert
from loramix.storage.files import write_csv, write_text

WEIGHTS, TRIED = "weights.json", "tried.csv"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_POINTS = 125  # of the grid that are tried: more experts get a random part of it
LORAHUB_BOUND, LORAHUB_PENALTY = 1.5, 0.05  # of Huang et al.

Objective = Callable[[Sequence[float]], float]


def search_static(recipe: Recipe, layout: Layout, folder: Path) -> None:
    """Write the weights of the grid with the lowest mean of the tasks' validation losses to
    `folder`.
    """
    experts = len(recipe.tasks)
    points = list(itertools.product(GRID, repeat=experts))
    if len(points) > MOST_POINTS:
        chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(recipe.seed))[
            :MOST_POINTS
        ]
        points = [points[int(index)] for index in chosen]

    def search(loss: Objective) -> list[list[float]]:
        return [[*point, loss(point)] for point in track(points, "best static weights")]

    _search(recipe, layout, folder, "output", search)


def search_lorahub(recipe: Recipe, layout: Layout, folder: Path) -> None:
    """Write LoraHub's weights to `folder`; raises MissingExtraError without the package cma."""
    try:
        import cma
    except ImportError as error:
        raise MissingExtraError("cma", "comparison") from error
    experts, steps = len(recipe.tasks), recipe.comparison.search_steps

    def search(loss: Objective) -> list[list[float]]:
        def penalised(weights: Sequence[float]) -> float:
            return loss(weights) + LORAHUB_PENALTY * sum(abs(w) for w in weights) / experts

        settings = {
            "bounds": [-LORAHUB_BOUND, LORAHUB_BOUND],
            "seed": recipe.seed + 1,
            "verbose": -9,
        }
        strategy = cma.CMAEvolutionStrategy([1 / experts] * experts, 0.5, settings)
        tried: list[list[float]] = []
        while len(tried) < steps:
            points = [list(map(float, point)) for point in strategy.ask()]
            scores = [
                penalised(point)
                for point in track(points, f"LoraHub, {len(tried)} of {steps} tried")
            ]
            strategy.tell(points, scores)
            tried += [[*point, score] for point, score in zip(points, scores, strict=True)]
        return tried

    _search(recipe, layout, folder, "parameter", search)


@contextmanager
def fixed_mixture(
    base: Base,
    recipe: Recipe,
    layout: Layout,
    weights: Mapping[str, float],
    mixing: Mixing = "output",
) -> Iterator[MixtureModel]:
    """Yield the mixture of the run's experts at these weights."""
    mixture = run_mixture(base, recipe, layout, GateConfig(mixing=mixing))
    with mixture.fixed(weights):
        yield mixture


def uniform_weights(recipe: Recipe) -> dict[str, float]:
    """Return the same share of 1 for every expert."""
    return {task.name: 1 / len(recipe.tasks) for task in recipe.tasks}


def read_weights(folder: Path) -> dict[str, float]:
    """Return the weights that a search has left."""
    weights: dict[str, float] = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    return weights


def run_mixture(base: Base, recipe: Recipe, layout: Layout, gate: GateConfig) -> MixtureModel:
    """Return an untrained mixture of the experts that a run has trained."""
    experts = [
        load_expert(task.name, layout.folder("lora", task.name) / "models") for task in recipe.tasks
    ]
    return MixtureModel(base.model, experts, gate, base_name=base.name, revision=base.revision)


def _search(
    recipe: Recipe,
    layout: Layout,
    folder: Path,
    mixing: Mixing,
    search: Callable[[Objective], list[list[float]]],
) -> None:
    """Let `search` try weights by the mean of the tasks' validation losses; write the best and all
    that it tried.
    """
    base, names = recipe_base(recipe), [task.name for task in recipe.tasks]
    mixture = run_mixture(base, recipe, layout, GateConfig(mixing=mixing))
    samples = _validation(recipe, layout)
    encoded = [
        encode_all(
            mixture,
            base.tokenizer,
            recipe,
            [(task, each.input, each.target) for each in samples[task.name]],
        )
        for task in recipe.tasks
    ]

    def loss(weights: Sequence[float]) -> float:
        with mixture.fixed(dict(zip(names, weights, strict=True))):
            means = [
                mean_loss(target_losses(mixture, base.tokenizer, recipe, part)) for part in encoded
            ]
        return sum(means) / len(means)

    tried = search(loss)
    *best, _ = min(tried, key=lambda row: row[-1])
    record(folder / RECORD, (sample for part in samples.values() for sample in part))
    write_csv(
        folder / TRIED, [*names, "loss"], [[round(value, 6) for value in row] for row in tried]
    )
    write_text(folder / WEIGHTS, json.dumps(dict(zip(names, best, strict=True)), indent=2))


def _validation(recipe: Recipe, layout: Layout) -> dict[str, list[Sample]]:
    samples, limit = read_manifest(layout.manifest), recipe.comparison.search_samples
    return {
        task.name: [
            each for each in samples if each.task == task.name and each.split == "validation"
        ][:limit]
        for task in recipe.tasks
    }
