"""Generation of a model's answers for the withheld test samples."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loramix.batches import encode, generation_batch, length_order
from loramix.data import Sample, read_manifest
from loramix.mixture import MixtureModel
from loramix.recipe import Recipe
from loramix.stages.layout import ANSWER_COLUMNS, Layout, write_csv
from loramix.stages.progress import track
from loramix.tasks import Task


def test_samples(recipe: Recipe, layout: Layout, task: Task) -> list[Sample]:
    """Return the withheld samples of a task: the same ones for every model."""
    samples = [s for s in read_manifest(layout.manifest) if s.task == task.name and s.split == "test"]
    return samples[: recipe.generation.test_samples]


@torch.inference_mode()
def write_answers(
    model: PreTrainedModel | PeftModel | MixtureModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    layout: Layout,
    *,
    folder: str,
    task: Task,
    label: str,
) -> None:
    """Let `model` answer every test sample of `task` and write input, generated and reference text as CSV."""
    model.eval()
    samples = test_samples(recipe, layout, task)
    inputs = [sample.input for sample in samples]
    generated = answer(model, tokenizer, recipe, task, inputs, label=f"{label} answers {task.name}")
    rows = [(sample.input, text, sample.target) for sample, text in zip(samples, generated, strict=True)]
    write_csv(layout.root / folder / f"{task.name}.csv", ANSWER_COLUMNS, rows)


def answer(
    model: PreTrainedModel | PeftModel | MixtureModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    task: Task,
    inputs: list[str],
    *,
    label: str,
) -> list[str]:
    """Return the model's answer to every input, in order; batches hold prompts of similar length."""
    base = model.base if isinstance(model, MixtureModel) else model
    causal = not base.config.is_encoder_decoder
    encoded = [encode(tokenizer, task, text, None, causal=causal, chat=recipe.base.chat) for text in inputs]
    order = length_order([len(sample.prompt) for sample in encoded])
    size = recipe.generation.batch_size
    answers = [""] * len(inputs)
    for chunk in track([order[first : first + size] for first in range(0, len(order), size)], label):
        batch = generation_batch(tokenizer, [encoded[index] for index in chunk], causal)
        batch = {key: value.to(base.device) for key, value in batch.items()}
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
