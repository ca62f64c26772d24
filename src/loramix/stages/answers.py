"""What a model makes of the withheld test samples: its answers, and its loss on the references."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loramix.batches import IGNORED, Collator, encode, generation_batch, length_order
from loramix.data import Sample, read_manifest
from loramix.mixture import MixtureModel
from loramix.recipe import Recipe
from loramix.stages.layout import ANSWER_COLUMNS, TEST_LOSS, TEST_LOSS_COLUMNS, Layout, write_csv
from loramix.stages.progress import track
from loramix.tasks import Task

Model: TypeAlias = PreTrainedModel | PeftModel | MixtureModel

Batch: TypeAlias = dict[str, Tensor | int]


def test_samples(recipe: Recipe, layout: Layout, task: Task) -> list[Sample]:
    """Return the withheld samples of a task: the same ones for every model."""
    samples = [s for s in read_manifest(layout.manifest) if s.task == task.name and s.split == "test"]
    return samples[: recipe.generation.test_samples]


@torch.inference_mode()
def write_answers(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    layout: Layout,
    *,
    folder: Path,
    tasks: Sequence[Task],
    label: str,
) -> None:
    """Let `model` answer all test samples: <task>.csv with input, generated and reference text, and test_loss.csv."""
    model.eval()
    losses = []
    for task in tasks:
        samples = test_samples(recipe, layout, task)
        inputs = [sample.input for sample in samples]
        generated = answer(model, tokenizer, recipe, task, inputs, label=f"{label} answers {task.name}")
        rows = [(sample.input, text, sample.target) for sample, text in zip(samples, generated, strict=True)]
        write_csv(folder / f"{task.name}.csv", ANSWER_COLUMNS, rows)
        batches = list(_target_batches(model, tokenizer, recipe, task, samples))
        losses.append((task.name, round(mean_loss(model, track(batches, f"{label} reads {task.name}")), 6)))
    write_csv(folder / TEST_LOSS, TEST_LOSS_COLUMNS, losses)


def answer(
    model: Model, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, task: Task, inputs: list[str], *, label: str
) -> list[str]:
    """Return the model's answer to every input, in order; batches hold prompts of similar length."""
    causal = not model.config.is_encoder_decoder
    encoded = [encode(tokenizer, task, text, None, causal=causal, chat=recipe.base.chat) for text in inputs]
    order = length_order([len(sample.prompt) for sample in encoded])
    answers = [""] * len(inputs)
    for chunk in track(_chunks(order, recipe.generation.batch_size), label):
        batch = generation_batch(tokenizer, [encoded[index] for index in chunk], causal)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        tokens = model.generate(
            **batch,
            max_new_tokens=task.max_new_tokens,
            num_beams=recipe.generation.num_beams,
            repetition_penalty=recipe.generation.repetition_penalty,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new = tokens[:, batch["input_ids"].shape[1] :] if causal else tokens
        for index, text in zip(chunk, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[index] = " ".join(text.split())
    return answers


def mean_loss(model: torch.nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean loss per target token over all batches, however large each of them is."""
    total, tokens = 0.0, 0
    for batch in batches:
        labels = batch["labels"]
        assert isinstance(labels, Tensor)
        counted = int((labels != IGNORED).sum())
        total += float(model(**batch).loss) * counted
        tokens += counted
    return total / max(tokens, 1)


def accepted_inputs(model: Model) -> set[str]:
    """Return the names of the inputs of the base model's forward pass."""
    base = model.base if isinstance(model, MixtureModel) else model
    base = base.get_base_model() if isinstance(base, PeftModel) else base
    return set(inspect.signature(base.forward).parameters)


def _target_batches(
    model: Model, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, task: Task, samples: Sequence[Sample]
) -> Iterator[Batch]:
    causal = not model.config.is_encoder_decoder
    collate = Collator(tokenizer, causal, accepted_inputs(model))
    encoded = [
        encode(tokenizer, task, each.input, each.target, causal=causal, chat=recipe.base.chat) for each in samples
    ]
    order = length_order([len(sample.prompt) for sample in encoded])
    for chunk in _chunks(order, recipe.generation.batch_size):
        batch = collate([encoded[index] for index in chunk])
        yield {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    return [order[first : first + size] for first in range(0, len(order), size)]
