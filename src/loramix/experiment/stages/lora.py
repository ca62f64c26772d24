"""LoRA finetune: one adapter per task, trained alone on a frozen base with PEFT."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from loramix.bases.loading import Base
from loramix.data.tasks import Task
from loramix.errors import StageError
from loramix.experiment.answers import write_answers
from loramix.experiment.recipe import LoraSpec, Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base, train
from loramix.storage.files import atomic_folder

ATTENTION = {"q", "k", "v", "o", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "c_attn"}


def learn(recipe: Recipe, layout: Layout, task: Task) -> None:
    """Write the task's adapter and losses under lora/<task>."""
    learn_adapter(
        recipe,
        layout,
        recipe.lora,
        [task],
        folder=layout.folder("lora", task.name),
        label=task.name,
    )


def learn_adapter(
    recipe: Recipe,
    layout: Layout,
    spec: LoraSpec,
    tasks: Sequence[Task],
    *,
    folder: Path,
    label: str,
) -> None:
    """Write one adapter of `tasks`, which take turns in its training, and its losses to
    `folder`.
    """
    base = recipe_base(recipe)
    model = adapted(base, spec, seed=recipe.seed)
    train(
        model,
        base.tokenizer,
        recipe,
        spec,
        tasks,
        layout=layout,
        folder=folder,
        label=f"LoRA {label}",
    )
    with atomic_folder(folder / "models") as models:
        model.save_pretrained(models)
        _name_base(models / "adapter_config.json", recipe.base.name)


def answer(recipe: Recipe, layout: Layout, task: Task) -> None:
    """Write the adapter's answers to every task under lora/<task>."""
    base, folder = recipe_base(recipe), layout.folder("lora", task.name)
    model = PeftModel.from_pretrained(base.model, folder / "models")
    label = f"LoRA {task.name}"
    write_answers(
        model, base.tokenizer, recipe, layout, folder=folder, tasks=recipe.tasks, label=label
    )


def adapted(base: Base, spec: LoraSpec, *, seed: int) -> PeftModel:
    """Return the base model with a fresh adapter in every target layer; the same one for the same
    seed.
    """
    targets = list(spec.targets) if spec.targets else attention_layers(base.model)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        fan_in_fan_out="c_attn" in targets,
        task_type="SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PeftModel = get_peft_model(base.model, config)
    return model


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names that the query, key, value and output projections have in this model."""
    found = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} & ATTENTION)
    if not found:
        raise StageError(
            f"no attention projections of known names in {type(model).__name__}; set lora.targets"
        )
    return found


def _name_base(file: Path, name: str) -> None:
    """Let the adapter name the base as the recipe does, not the folder it was cached in."""
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": name}, indent=2))
