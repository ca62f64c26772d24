"""Answers and losses: a model generates from prompts, and reads the references."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loramix.data.tasks import Task
from loramix.data.tokens.answers import Answer, end_ids, read_answer
from loramix.data.tokens.batches import IGNORED, Collator, Encoded, generation_batch, length_order
from loramix.data.tokens.encoding import encode
from loramix.experiment.processes import processes
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import ANSWER_COLUMNS, TEST_LOSS, TEST_LOSS_COLUMNS, Run
from loramix.mixture.model import MixtureModel
from loramix.storage.files import write_csv

Model: TypeAlias = PreTrainedModel | PeftModel | MixtureModel
Row = TypeVar("Row")

_BYTES_OF_LOGITS = 2**29  # in float32, of one batch whose losses are measured


@dataclass(frozen=True)
class Loss:
    """The mean loss per token of one reference, and its tokens, the end token included."""

    mean: float
    tokens: int


def write_answers(
    run: Run,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    tasks: Sequence[Task],
    label: str,
) -> None:
    """Write a model's answers to all test samples, and its losses on the references.

    Into `folder`: <task>.csv with input, generated and reference text, and test_loss.csv.
    """
    model.eval()
    recipe, means = run.recipe, []
    for task in tasks:
        samples = run.test_samples(task)
        asked = [(task, sample.input, sample.target) for sample in samples]
        encoded = encode_all(model, tokenizer, recipe, asked)
        answers = generate_answers(
            model,
            tokenizer,
            recipe,
            task,
            encoded,
            label=f"{label} answers {task.name}",
        )
        pairs = zip(samples, answers, strict=True)
        rows = [(sample.input, answer.text, sample.target) for sample, answer in pairs]
        if processes().first:
            write_csv(folder / f"{task.name}.csv", ANSWER_COLUMNS, rows)
        losses = target_losses(
            model,
            tokenizer,
            encoded,
            batch_size=recipe.generation.batch_size,
            label=f"{label} reads {task.name}",
        )
        means.append((task.name, round(mean_loss(losses), 6)))
    if processes().first:
        write_csv(folder / TEST_LOSS, TEST_LOSS_COLUMNS, means)


def encode_all(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    samples: Sequence[tuple[Task, str, str | None]],
) -> list[Encoded]:
    """Return (task, input, reference) triples as token ids for this model."""
    causal = not model.config.is_encoder_decoder
    return [
        encode(tokenizer, task, text, target, causal=causal, chat=recipe.base.chat)
        for task, text, target in samples
    ]


@torch.inference_mode()
def generate_answers(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    task: Task,
    encoded: Sequence[Encoded],
    *,
    label: str,
    use_cache: bool = True,
) -> list[Answer]:
    """Return the model's answer to every prompt of a task, in order.

    Batches hold prompts of similar length, which need less padding. Several processes share the
    batches, which are the same for any number of them.
    """
    causal, chat = not model.config.is_encoder_decoder, recipe.base.chat
    ends = end_ids(tokenizer, model.generation_config, chat=chat)

    def answered(chunk: Sequence[int]) -> list[Answer]:
        batch = generation_batch(tokenizer, [encoded[index] for index in chunk], causal)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        with _decided_once(model, batch):
            tokens = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=task.max_new_tokens,
                num_beams=recipe.generation.num_beams,
                repetition_penalty=recipe.generation.repetition_penalty,
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends or None,
            )
        # generate() returns a decoder's prompt too, and an encoder-decoder's start token
        new = tokens[:, batch["input_ids"].shape[1] :] if causal else tokens[:, 1:]
        # a row that ends before its batch is padded; the pad token may be the end token
        return [
            read_answer(
                tokenizer, ids.tolist(), ends, chat=chat, whitespace=task.cleaning.whitespace
            )
            for ids in new
        ]

    order = length_order([len(sample.prompt) for sample in encoded])
    return _in_order(order, recipe.generation.batch_size, answered, label)


@torch.inference_mode()
def target_losses(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    label: str | None = None,
) -> list[Loss]:
    """Return the model's loss on the target of every sample, in order.

    Several processes share the batches.
    batch_size: of short targets; their logits bound it otherwise.
    """
    causal = not model.config.is_encoder_decoder
    collate = Collator(tokenizer, causal, accepted_inputs(model))
    longest = max(len(sample.target) for sample in encoded) + 1
    bytes_of_row = 4 * longest * model.config.get_text_config().vocab_size
    size = min(batch_size, max(1, _BYTES_OF_LOGITS // bytes_of_row))

    def measured(chunk: Sequence[int]) -> list[Loss]:
        batch = collate([encoded[index] for index in chunk])
        given = {
            key: value.to(model.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return _row_losses(model, given, causal=causal)

    order = length_order([len(sample.prompt) for sample in encoded])
    return _in_order(order, size, measured, label)


def mean_loss(losses: Sequence[Loss]) -> float:
    """Return the mean loss per target token of all samples."""
    total = sum(loss.mean * loss.tokens for loss in losses)
    return total / max(sum(loss.tokens for loss in losses), 1)


def accepted_inputs(model: Model) -> set[str]:
    """Return the names of the inputs of the base model's forward pass."""
    base = model.base if isinstance(model, MixtureModel) else model
    # PeftModel.forward takes *args and **kwargs, and names no input
    base = base.get_base_model() if isinstance(base, PeftModel) else base
    return set(inspect.signature(base.forward).parameters)


def _row_losses(model: Model, batch: Mapping[str, object], *, causal: bool) -> list[Loss]:
    logits_BTV, labels_BT = model(**batch).logits.float(), batch["labels"]
    assert isinstance(labels_BT, Tensor)
    labels_BT = labels_BT.to(logits_BTV.device)  # of a spread base: the last one
    if causal:  # each token is predicted by the one before it
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    losses_BT = nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, reduction="none", ignore_index=IGNORED
    )
    tokens_B = (labels_BT != IGNORED).sum(1)
    means_B = losses_BT.sum(1) / tokens_B
    return [Loss(float(mean), int(tokens)) for mean, tokens in zip(means_B, tokens_B, strict=True)]


def _decided_once(model: Model, batch: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Hold a reference gate at its decision from the prompt: it cannot decide as it generates."""
    if isinstance(model, MixtureModel) and model.gate_config.context == "reference":
        return model.fixed_layers(model.mean_weights(**batch))
    return nullcontext()


def _in_order(
    order: Sequence[int],
    size: int,
    work: Callable[[Sequence[int]], list[Row]],
    label: str | None,
) -> list[Row]:
    """Return what `work` returns for the rows of every batch, by the rows' indices.

    order: of the indices; batches are cut from it.
    """
    chunks = [order[first : first + size] for first in range(0, len(order), size)]
    done = processes().divided(chunks, work, shown=partial(track, label=label))
    rows = dict(zip(chain(*chunks), chain(*done), strict=True))
    return [rows[index] for index in range(len(order))]
