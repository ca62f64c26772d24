"""DARE: the experts' updates merged like TIES, after entries are dropped at random."""

from contextlib import AbstractContextManager
from pathlib import Path

from peft import PeftModel

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import merge, with_adapter
from loramix.experiment.graph import Settings
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import MODELS, Run


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the merge."""
    return {"merge": {"density": recipe.comparison.density}}


def fit(run: Run, folder: Path) -> None:
    """Write the merged adapter."""
    merge(run, folder, combination="dare_ties_svd")


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[PeftModel]:
    """Return the base with the merged adapter."""
    return with_adapter(base, folder / MODELS)


BASELINE = Baseline(
    "DARE",
    "DARE, a merge of the experts",
    paper="Yu et al. 2023, arXiv:2311.03099",
    load=load,
    fit=fit,
    leaves=(MODELS,),
    settings=settings,
)
