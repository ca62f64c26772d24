"""Static: the best weights of a grid, the same for every input, chosen on validation samples."""

import itertools
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import (
    SEARCH_LEAVES,
    Objective,
    at_weights,
    read_weights,
    search_weights,
)
from loramix.experiment.graph import Settings
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.mixture.model import MixtureModel

LABEL = "best static weights"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_POINTS = 125  # of the grid that are tried: more experts get a random part of it


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the search."""
    return {"search": recipe.comparison.model_dump(mode="json", include={"search_samples"})}


def fit(run: Run, folder: Path) -> None:
    """Write the weights of the grid with the lowest mean of the tasks' validation losses."""
    points = list(itertools.product(GRID, repeat=len(run.recipe.expert_names)))
    if len(points) > MOST_POINTS:
        generator = torch.Generator().manual_seed(run.recipe.seed)
        chosen = torch.randperm(len(points), generator=generator)[:MOST_POINTS]
        points = [points[index] for index in chosen.tolist()]

    def search(loss: Objective) -> list[list[float]]:
        return [[*point, loss(point)] for point in track(points, LABEL)]

    search_weights(run, folder, search, mixing="output")


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[MixtureModel]:
    """Return the run's experts at the weights that were found."""
    return at_weights(run, base, read_weights(folder), mixing="output")


BASELINE = Baseline(LABEL, paper=None, load=load, fit=fit, leaves=SEARCH_LEAVES, settings=settings)
