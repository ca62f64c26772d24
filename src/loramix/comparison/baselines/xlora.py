"""X-LoRA: a classifier that reads the whole input and weighs the experts for every token and layer.

It is trained on the samples of the gates, like them but for its learning rate. It uses no cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import save_file

from loramix.bases.loading import Base, load_config
from loramix.comparison.baselines.baseline import Baseline
from loramix.experiment.graph import OLD_GATES, TRAINING_OUTPUTS, Settings, gate_settings
from loramix.experiment.recipe import Recipe, TrainSpec
from loramix.experiment.run import Run
from loramix.experiment.training.checkpoints import load_trainable, trainable_state
from loramix.experiment.training.trainer import train
from loramix.storage.files import atomic_file

CLASSIFIER = "classifier.safetensors"


def problem(recipe: Recipe) -> str | None:
    """Return why X-LoRA cannot run on the recipe's base; None if it can."""
    config = load_config(recipe.base.name, revision=recipe.base.revision)
    # it looks for adapted layers below `model.`
    if config.is_encoder_decoder or config.model_type == "gpt2":
        return f"PEFT's X-LoRA does not load adapters of {config.model_type} models"
    return None


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the training."""
    # of the gates, it takes the training alone; the rest is as it always was
    as_before = recipe.gate.model_copy(update={**OLD_GATES, "init": "mean", "scope": "layer"})
    return {
        "gate": gate_settings(as_before),
        "classifier": {"learning_rate": recipe.comparison.xlora_learning_rate},
    }


def fit(run: Run, folder: Path) -> None:
    """Train the classifier and write it, with its losses, to `folder`.

    PEFT's own saving leaves out parts of the classifier whose names hold an adapter's name, so it
    is saved here.
    """
    recipe, base = run.recipe, run.load_base()
    training = recipe.gate.model_dump(include=set(TrainSpec.model_fields))
    training["epochs"] = max(1, recipe.gate.epochs)  # gates may do without
    training["learning_rate"] = recipe.comparison.xlora_learning_rate
    spec = TrainSpec.model_validate(training)
    model = untrained(run, base)
    train(
        run,
        model,
        base.tokenizer,
        spec,
        recipe.routed,
        folder=folder,
        label="classifier of X-LoRA",
    )
    with atomic_file(folder / CLASSIFIER) as file:
        save_file(trainable_state(model), file)


@contextmanager
def load(run: Run, folder: Path, base: Base) -> Iterator[PeftModel]:
    """Yield X-LoRA over the run's experts with the trained classifier."""
    model = untrained(run, base)
    load_trainable(model, folder / CLASSIFIER)
    yield model


def untrained(run: Run, base: Base) -> PeftModel:
    """Return X-LoRA over the run's experts before its training; the same one for the same seed."""
    base.model.config.use_cache = False
    names = run.recipe.expert_names
    adapters = {str(index): str(run.adapter(name)) for index, name in enumerate(names)}
    with torch.random.fork_rng():
        torch.manual_seed(run.recipe.seed)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.model.config.hidden_size,
            xlora_depth=1,
            layerwise_scalings=True,
            adapters=adapters,
        )
        model: PeftModel = get_peft_model(base.model, config)
    return model


BASELINE = Baseline(
    "X-LoRA",
    "X-LoRA, PEFT's trained routing",
    paper="Buehler & Buehler 2024, arXiv:2402.07148",
    load=load,
    fit=fit,
    leaves=(CLASSIFIER, *TRAINING_OUTPUTS),
    settings=settings,
    cached=False,
    problem=problem,
)
