"""LoraHub: weights of either sign, the same for every input, searched without gradients.

It composes the matrices themselves, (Σ w_e B_e)(Σ w_e A_e), which is parameter mixing here, and
searches (CMA-ES) for the lowest loss on a few examples plus 0.05 times the mean of |w|. It was made
to fit one new task at a time; here it fits all tasks at once, because a model that is not told the
task has one set of weights.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import (
    SEARCH_LEAVES,
    Objective,
    at_weights,
    read_weights,
    search_weights,
)
from loramix.errors import MissingExtraError
from loramix.experiment.given import unequal_ranks
from loramix.experiment.graph import Settings
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.mixture.model import MixtureModel

BOUND, PENALTY = 1.5, 0.05  # of the paper
FIRST_STEP = 0.5  # standard deviation of the search's first steps


def problem(recipe: Recipe) -> str | None:
    """Return why LoraHub cannot compose the experts' matrices; None if it can."""
    unequal = unequal_ranks(recipe)
    return f"LoraHub needs experts of one rank: {unequal}" if unequal else None


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the search."""
    fields = {"search_samples", "search_steps"}
    return {"search": recipe.comparison.model_dump(mode="json", include=fields)}


def fit(run: Run, folder: Path) -> None:
    """Write the weights of the search; raises MissingExtraError without the package cma."""
    try:
        import cma
    except ImportError as error:
        raise MissingExtraError("cma", "comparison") from error
    experts, steps = len(run.recipe.expert_names), run.recipe.comparison.search_steps
    options = {"bounds": [-BOUND, BOUND], "seed": run.recipe.seed + 1, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([1 / experts] * experts, FIRST_STEP, options)

    def search(loss: Objective) -> list[list[float]]:
        def penalised(weights: Sequence[float]) -> float:
            return loss(weights) + PENALTY * sum(abs(weight) for weight in weights) / experts

        tried: list[list[float]] = []
        while len(tried) < steps:
            title = f"LoraHub, {len(tried)} of {steps} tried"
            points = [list(map(float, point)) for point in strategy.ask()]
            losses = [penalised(point) for point in track(points, title)]
            strategy.tell(points, losses)
            tried += [[*point, loss] for point, loss in zip(points, losses, strict=True)]
        return tried

    search_weights(run, folder, search, mixing="parameter")


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[MixtureModel]:
    """Return the run's experts at the weights that were found."""
    return at_weights(run, base, read_weights(folder), mixing="parameter")


BASELINE = Baseline(
    "LoraHub",
    "LoraHub, fixed weights found by search",
    paper="Huang et al. 2023, arXiv:2307.13269",
    load=load,
    fit=fit,
    leaves=SEARCH_LEAVES,
    settings=settings,
    problem=problem,
)
