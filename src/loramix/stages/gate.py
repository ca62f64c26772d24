"""Gate: all adapters frozen in one mixture, its gates trained on every task in turn."""

import torch
from transformers import PreTrainedTokenizerBase

from loramix.batches import encode, generation_batch
from loramix.config import GateConfig
from loramix.experts import load_expert
from loramix.mixture import MixtureModel
from loramix.recipe import Recipe
from loramix.stages.answers import test_samples, write_answers
from loramix.stages.layout import WEIGHT_COLUMNS, Layout, write_csv
from loramix.stages.training import recipe_base, train
from loramix.tasks import Task


def learn(recipe: Recipe, layout: Layout) -> None:
    """Write the mixture and the losses of its gates under cgm."""
    base, folder = recipe_base(recipe), layout.folder("gate")
    experts = [load_expert(task.name, layout.folder("lora", task.name) / "models") for task in recipe.tasks]
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        mixture = MixtureModel(base.model, experts, _config(recipe), base_name=base.name, revision=base.revision)
    label = "gates of CGM LoRA"
    train(mixture, base.tokenizer, recipe, recipe.gate, recipe.tasks, layout=layout, folder=folder, label=label)
    mixture.save_pretrained(folder / "models")


def answer(recipe: Recipe, layout: Layout) -> None:
    """Write the mixture's answers to every task and its mean weights under cgm."""
    base, folder = recipe_base(recipe), layout.folder("gate")
    mixture = MixtureModel.from_pretrained(folder / "models", base=base.model)
    write_answers(mixture, base.tokenizer, recipe, layout, folder=folder, tasks=recipe.tasks, label="CGM LoRA")
    rows = [row for task in recipe.tasks for row in mean_weights(mixture, base.tokenizer, recipe, layout, task)]
    write_csv(folder / "weights.csv", WEIGHT_COLUMNS, rows)


def _config(recipe: Recipe) -> GateConfig:
    spec = recipe.gate
    return GateConfig(context=spec.context, hidden=spec.hidden, mixing=spec.mixing, temperature=spec.temperature)


def mean_weights(
    mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, layout: Layout, task: Task
) -> list[tuple[str, str, str, float]]:
    """Return (layer, task, expert, mean weight over the test prompts) for every layer and expert."""
    causal = not mixture.config.is_encoder_decoder
    samples = test_samples(recipe, layout, task)
    encoded = [encode(tokenizer, task, each.input, None, causal=causal, chat=recipe.base.chat) for each in samples]
    sums: dict[str, torch.Tensor] = {}
    for first in range(0, len(encoded), recipe.generation.batch_size):
        batch = generation_batch(tokenizer, encoded[first : first + recipe.generation.batch_size], causal)
        batch = {key: value.to(mixture.device) for key, value in batch.items()}
        for layer, weights_BE in mixture.weights(**batch).items():
            sums[layer] = sums.get(layer, 0) + weights_BE.sum(0)
    return [
        (layer, task.name, expert, round(float(total), 6))
        for layer, sums_E in sums.items()
        for expert, total in zip(mixture.expert_names, sums_E / len(samples), strict=True)
    ]
