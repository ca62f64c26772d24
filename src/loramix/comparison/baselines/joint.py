"""Joint: one adapter of all tasks that have an expert, trained on them in turn: with as many
parameters as the experts together (a given one counts as much as one that is trained), or with
those of one expert.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from peft import PeftModel

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import with_adapter
from loramix.experiment.graph import TRAINING_OUTPUTS, Settings
from loramix.experiment.recipe import LoraSpec, Recipe
from loramix.experiment.run import MODELS, Run
from loramix.experiment.stages.lora import learn_adapter


def load(run: Run, folder: Path, base: Base) -> AbstractContextManager[PeftModel]:
    """Return the base with the adapter."""
    return with_adapter(base, folder / MODELS)


def _fit(spec: Callable[[Recipe], LoraSpec], title: str, run: Run, folder: Path) -> None:
    """Train the adapter."""
    learn_adapter(run, spec(run.recipe), run.recipe.routed, folder=folder, title=title)


def _settings(spec: Callable[[Recipe], LoraSpec], recipe: Recipe) -> Settings:
    return {"lora": spec(recipe).model_dump(mode="json")}


def _large(recipe: Recipe) -> LoraSpec:
    """Return the experts' settings with their ranks added up, and alpha with them: the update keeps
    its scale.
    """
    spec, count = recipe.lora, len(recipe.expert_names)
    return spec.model_copy(update={"rank": spec.rank * count, "alpha": spec.alpha * count})


def _small(recipe: Recipe) -> LoraSpec:
    return recipe.lora


def _baseline(
    label: str, in_words: str, title: str, spec: Callable[[Recipe], LoraSpec]
) -> Baseline:
    return Baseline(
        label,
        in_words,
        paper=None,
        load=load,
        fit=partial(_fit, spec, title),
        leaves=(MODELS, *TRAINING_OUTPUTS),
        settings=partial(_settings, spec),
        of_experts=False,
    )


BASELINE = _baseline(
    "one LoRA, all tasks",
    "one LoRA trained on all tasks",
    "LoRA of all tasks at once",
    _large,
)
SMALL = _baseline(
    "small LoRA, all tasks",
    "one small LoRA trained on all tasks",
    "small LoRA of all tasks at once",
    _small,
)
