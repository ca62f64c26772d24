"""Joint: one adapter of all tasks that have an expert, trained on them in turn, with as many
parameters as the experts together; a given one counts as much as one that is trained.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from peft import PeftModel

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import with_adapter
from loramix.experiment.graph import TRAINING_OUTPUTS, Settings
from loramix.experiment.recipe import LoraSpec, Recipe
from loramix.experiment.run import MODELS, Run
from loramix.experiment.stages.lora import learn_adapter


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the training."""
    return {"lora": _spec(recipe).model_dump(mode="json")}


def fit(run: Run, folder: Path) -> None:
    """Train the adapter."""
    title = "LoRA of all tasks at once"
    learn_adapter(run, _spec(run.recipe), run.recipe.routed, folder=folder, title=title)


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[PeftModel]:
    """Return the base with the adapter."""
    return with_adapter(base, folder / MODELS)


def _spec(recipe: Recipe) -> LoraSpec:
    """Return the experts' settings with their ranks added up, and alpha with them: the update keeps
    its scale.
    """
    spec, count = recipe.lora, len(recipe.expert_names)
    return spec.model_copy(update={"rank": spec.rank * count, "alpha": spec.alpha * count})


BASELINE = Baseline(
    "one LoRA, all tasks",
    paper=None,
    load=load,
    fit=fit,
    leaves=(MODELS, *TRAINING_OUTPUTS),
    settings=settings,
    of_experts=False,
)
