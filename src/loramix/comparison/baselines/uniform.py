"""Uniform: every expert has the same share of 1, whatever the input."""

from contextlib import AbstractContextManager
from pathlib import Path

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import at_weights
from loramix.experiment.run import Run
from loramix.mixture.model import MixtureModel


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[MixtureModel]:
    """Return the run's experts at equal weights."""
    names = run.recipe.expert_names
    return at_weights(run, base, dict.fromkeys(names, 1 / len(names)), mixing="output")


BASELINE = Baseline("uniform weights", "uniform weights of all experts", paper=None, load=load)
