"""Gate: all adapters frozen in one mixture, its gates trained on every task in turn."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from loramix.bases.loading import Base
from loramix.config import Prompting
from loramix.data.batches import encode, generation_batch
from loramix.data.samples import Sample, read_manifest
from loramix.data.tasks import Task
from loramix.experiment.answers import test_samples, write_answers
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import WEIGHT_COLUMNS, Layout
from loramix.experiment.training.gate_trainer import GateTrainer
from loramix.experiment.training.tokens import as_trained
from loramix.experiment.training.trainer import chosen_samples, recipe_base, train
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import from_adapters, from_examples
from loramix.storage.experts import load_expert
from loramix.storage.files import write_csv

EXAMPLES = 16  # prompts per task for prototypes


def learn(recipe: Recipe, layout: Layout) -> None:
    """Write the mixture and the losses of its gates under cgm."""
    learn_gates(recipe, layout, folder=layout.folder("gate"), label="CGM LoRA")


def learn_gates(recipe: Recipe, layout: Layout, *, folder: Path, label: str) -> None:
    """Write the mixture of the recipe's `gate` and `seed`, and the losses of its gates, to
    `folder`.
    """
    base, spec = recipe_base(recipe), recipe.gate
    experts = [
        load_expert(task.name, layout.folder("lora", task.name) / "models") for task in recipe.tasks
    ]
    prompting = Prompting(
        chat=recipe.base.chat, templates={task.name: task.prompt for task in recipe.tasks}
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        mixture = MixtureModel(
            base.model,
            experts,
            spec.config,
            base_name=base.name,
            revision=base.revision,
            prompting=prompting,
        )
    if spec.init == "prototype":
        from_examples(mixture, _examples(recipe, layout, base))
    elif spec.init == "arrow":
        from_adapters(mixture)
    train(
        mixture,
        base.tokenizer,
        recipe,
        spec,
        recipe.tasks,
        layout=layout,
        folder=folder,
        label=f"gates of {label}",
        trainer_class=partial(GateTrainer, spec=spec, tasks=recipe.tasks),
        bare=spec.bare,
    )
    mixture.save_pretrained(folder / "models")


def answer(recipe: Recipe, layout: Layout) -> None:
    """Write the mixture's answers to every task and its mean weights under cgm."""
    base, folder = recipe_base(recipe), layout.folder("gate")
    mixture = MixtureModel.from_pretrained(folder / "models", base=base.model)
    write_answers(
        mixture, base.tokenizer, recipe, layout, folder=folder, tasks=recipe.tasks, label="CGM LoRA"
    )
    rows = [
        row
        for task in recipe.tasks
        for row in mean_weights(mixture, base.tokenizer, recipe, layout, task)
    ]
    write_csv(folder / "weights.csv", WEIGHT_COLUMNS, rows)


def _examples(
    recipe: Recipe, layout: Layout, base: Base
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return the first training prompts of every task, one by one."""
    chosen = chosen_samples(read_manifest(layout.manifest), recipe.gate, recipe.tasks)["train"]
    causal, device = not base.model.config.is_encoder_decoder, base.model.device
    examples = {}
    for task, samples in zip(recipe.tasks, chosen, strict=True):
        asked = [
            (as_trained(task, each, bare=recipe.gate.bare), each) for each in samples[:EXAMPLES]
        ]
        batches = _prompt_batches(
            recipe, asked, base.tokenizer, causal=causal, device=device, size=1
        )
        examples[task.name] = list(batches)
    return examples


def _prompt_batches(
    recipe: Recipe,
    asked: Sequence[tuple[Task, Sample]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    causal: bool,
    device: torch.device,
    size: int,
) -> Iterator[dict[str, torch.Tensor]]:
    chat = recipe.base.chat
    encoded = [
        encode(tokenizer, task, each.input, None, causal=causal, chat=chat) for task, each in asked
    ]
    for first in range(0, len(encoded), size):
        batch = generation_batch(tokenizer, encoded[first : first + size], causal)
        yield {key: value.to(device) for key, value in batch.items()}


def mean_weights(
    mixture: MixtureModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    layout: Layout,
    task: Task,
) -> list[tuple[str, str, str, float]]:
    """Return (layer, task, expert, mean weight over the test prompts) for every layer and
    expert.
    """
    samples = test_samples(recipe, layout, task)
    batches = _prompt_batches(
        recipe,
        [(task, each) for each in samples],
        tokenizer,
        causal=not mixture.config.is_encoder_decoder,
        device=mixture.device,
        size=recipe.generation.batch_size,
    )
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        for layer, weights_BE in mixture.mean_weights(**batch).items():
            sums[layer] = sums.get(layer, 0) + weights_BE.sum(0)
    return [
        (layer, task.name, expert, round(float(total), 6))
        for layer, sums_E in sums.items()
        for expert, total in zip(mixture.expert_names, sums_E / len(samples), strict=True)
    ]
