"""Training tokens per second and peak memory of the LoRA and gate stages against a plain PEFT loop.

    python benchmarks/training.py [arxiv.parquet]

All variants train on the same batches of abstracts and titles with the embedded default model: those of the file
(columns `summaries` and `titles`), or of the demo data. The plain loop pads prompt and target together on the right and
computes the logits of every position; the stages are measured through the trainer that `loramix run` uses.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import finish, report
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import Adafactor, TrainerCallback, TrainingArguments

from loramix import GateConfig, MixtureModel
from loramix.bases import Base, load_base
from loramix.batches import IGNORED, Collator, Encoded, encode
from loramix.data import prepare
from loramix.stages.training import MixingTrainer, Samples, TurnSampler
from loramix.tasks import Task, built_in

VARIANTS = ("plain PEFT loop", "LoRA stage", "gate stage")
STEPS, BATCH, WARM = 6, 8, 2


class Clock(TrainerCallback):
    """Notes when every step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())


def task(source: str | None) -> Task:
    """Return the title task on a file, or on the demo data."""
    if source is None:
        return built_in("demo-title").model_copy(update={"max_input_tokens": 192, "max_new_tokens": 32})
    columns = {"source": source, "input_column": "summaries", "target_column": "titles"}
    limits = {"max_input_tokens": 192, "max_new_tokens": 32}
    return built_in("arxiv-title").model_copy(update={**columns, **limits})


def samples(base: Base, source: str | None) -> list[Encoded]:
    """Return the encoded training samples, as many as the steps take."""
    title = task(source)
    prepared = prepare([title], samples=200, seed=0)[title.name].samples[: STEPS * BATCH]
    return [encode(base.tokenizer, title, each.input, each.target, causal=True, chat=False) for each in prepared]


def adapted(base: Base) -> PeftModel:
    """Return the model with a LoRA adapter of rank 16 on the attention projections."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    torch.manual_seed(0)
    return get_peft_model(base.model, LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM"))


def plain(base: Base, data: list[Encoded]) -> list[float]:
    """Train as a short script with PEFT does, and return when each step ended."""
    model = adapted(base).train()
    optimizer = Adafactor(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, scale_parameter=False, relative_step=False
    )
    order, ends = list(TurnSampler([len(data)], BATCH, seed=0)), []
    for first in range(0, len(order), BATCH):
        rows = [data[index] for index in order[first : first + BATCH]]
        ids = pad_sequence([torch.tensor(row.prompt + row.target) for row in rows], batch_first=True)
        mask = pad_sequence([torch.ones(len(row.prompt + row.target)) for row in rows], batch_first=True).long()
        labels = [torch.tensor([IGNORED] * len(row.prompt) + row.target) for row in rows]
        labels_BT = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        model(input_ids=ids, attention_mask=mask, labels=labels_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.monotonic())
    return ends


def staged(model: PeftModel | MixtureModel, base: Base, data: list[Encoded]) -> list[float]:
    """Train with the trainer of the stages, and return when each step ended."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3,
            optim="adafactor", seed=0, report_to=[], disable_tqdm=True, remove_unused_columns=False,
            label_names=["labels"], logging_strategy="no", save_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = MixingTrainer(
            model=model,
            args=arguments,
            train_dataset=Samples([data]),
            data_collator=Collator(base.tokenizer, causal=True),
            callbacks=[clock],
        )
        trainer.train()
    return clock.ends


def mixture(base: Base) -> MixtureModel:
    """Return a mixture of two adapters of rank 16."""
    with tempfile.TemporaryDirectory() as folder:
        adapted(load_base("smollm2-135m")).save_pretrained(folder)
        experts: dict[str, str | Path] = {"first": folder, "second": folder}
        return MixtureModel.from_experts(base.model, experts, gate=GateConfig())


def measured(variant: str, source: str | None) -> dict[str, float]:
    """Return the median tokens per second after the first steps."""
    base = load_base("smollm2-135m")
    data = samples(base, source)
    if variant == "plain PEFT loop":
        ends = plain(base, data)
    else:
        ends = staged(mixture(base) if variant == "gate stage" else adapted(base), base, data)
    order = list(TurnSampler([len(data)], BATCH, seed=0))[WARM * BATCH :]
    tokens = sum(len(data[index].prompt) + len(data[index].target) for index in order)
    return {"tokens/s": tokens / (ends[-1] - ends[WARM - 1])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        finish(lambda: measured(options.variant, options.source))
    else:
        report(__file__, VARIANTS, rounds=3, arguments=[options.source] if options.source else [])
