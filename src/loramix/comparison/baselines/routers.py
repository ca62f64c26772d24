"""Other routers over the same experts, from PEFT: Arrow, which trains nothing, and X-LoRA, which
trains a classifier.

Arrow: Ostapenko et al. 2024, arXiv:2405.11157. X-LoRA: Buehler & Buehler 2024, arXiv:2402.07148.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import ArrowConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from safetensors.torch import save_file

from loramix.bases.loading import Base
from loramix.experiment.recipe import Recipe, TrainSpec
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import load_trainable, recipe_base, train, trainable_state
from loramix.storage.files import atomic_file

CLASSIFIER = "classifier.safetensors"


@contextmanager
def arrow(base: Base, recipe: Recipe, layout: Layout) -> Iterator[PeftModel]:
    """Yield Arrow over the run's experts: every token takes the adapters whose first direction it
    has most of.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        config = ArrowConfig(
            top_k=min(2, len(recipe.tasks)), router_temperature=1.0, rng_seed=recipe.seed
        )
        yield create_arrow_model(base.model, _adapters(recipe, layout), config)


def xlora_problem(recipe: Recipe) -> str | None:
    """Return why X-LoRA cannot run on the recipe's base; None if it can."""
    from loramix.bases.loading import load_config

    config = load_config(recipe.base.name, revision=recipe.base.revision)
    if (
        config.is_encoder_decoder or config.model_type == "gpt2"
    ):  # it looks for adapted layers below `model.`
        return f"PEFT's X-LoRA does not load adapters of {config.model_type} models"
    return None


def learn_xlora(recipe: Recipe, layout: Layout, folder: Path) -> None:
    """Train X-LoRA's classifier on the samples of the gates and write it, with its losses, to
    `folder`.

    PEFT's own saving leaves out parts of the classifier whose names hold an adapter's name, so it
    is saved here.
    """
    base = recipe_base(recipe)
    spec = recipe.gate.model_copy(update={"learning_rate": recipe.comparison.xlora_learning_rate})
    training = TrainSpec.model_validate(spec.model_dump(include=set(TrainSpec.model_fields)))
    with xlora(base, recipe, layout, None) as model:
        train(
            model,
            base.tokenizer,
            recipe,
            training,
            recipe.tasks,
            layout=layout,
            folder=folder,
            label="classifier of X-LoRA",
        )
        with atomic_file(folder / CLASSIFIER) as file:
            save_file(trainable_state(model), file)


@contextmanager
def xlora(base: Base, recipe: Recipe, layout: Layout, folder: Path | None) -> Iterator[PeftModel]:
    """Yield X-LoRA over the run's experts, with the classifier of `folder` or an untrained one; it
    uses no cache.
    """
    base.model.config.use_cache = False
    adapters = {str(index): path for index, path in enumerate(_adapters(recipe, layout))}
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.model.config.hidden_size,
            xlora_depth=1,
            layerwise_scalings=True,
            adapters=adapters,
        )
        model = get_peft_model(base.model, config)
    if folder is not None:
        load_trainable(model, folder / CLASSIFIER)
    yield model


def _adapters(recipe: Recipe, layout: Layout) -> list[str]:
    return [str(layout.folder("lora", task.name) / "models") for task in recipe.tasks]
