"""Static: one weight for every expert, the same for every input and layer.

Of few experts the whole grid is searched, on validation samples; of more, whose grid would be too
large, gradients find the weights on the samples of the gates.
"""

import itertools
from contextlib import AbstractContextManager
from pathlib import Path

from loramix.bases.loading import Base
from loramix.comparison.baselines import learned_weights
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
MOST_POINTS = 125  # of a grid that is searched: three experts


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the search."""
    if not _searched(recipe):
        return learned_weights.settings(recipe)
    return {"search": recipe.comparison.model_dump(mode="json", include={"search_samples"})}


def leaves(recipe: Recipe) -> tuple[str, ...]:
    """Return what the fit leaves."""
    return SEARCH_LEAVES if _searched(recipe) else learned_weights.LEAVES


def fit(run: Run, folder: Path) -> None:
    """Write the weights with the lowest mean of the tasks' losses."""
    if not _searched(run.recipe):
        learned_weights.learn(run, folder, per_layer=False, label=LABEL)
        return
    points = list(itertools.product(GRID, repeat=len(run.recipe.expert_names)))

    def search(loss: Objective) -> list[list[float]]:
        return [[*point, loss(point)] for point in track(points, LABEL)]

    search_weights(run, folder, search, mixing="output")


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[MixtureModel]:
    """Return the run's experts at the weights that were found."""
    if not _searched(run.recipe):
        return learned_weights.load(run, folder, base)
    return at_weights(run, base, read_weights(folder), mixing="output")


def _searched(recipe: Recipe) -> bool:
    points: int = len(GRID) ** len(recipe.expert_names)
    return points <= MOST_POINTS


BASELINE = Baseline(
    LABEL,
    "the best static weights, the same for every input",
    paper=None,
    load=load,
    fit=fit,
    leaves=leaves,
    settings=settings,
)
