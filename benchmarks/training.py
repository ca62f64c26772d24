"""Training tokens per second and peak memory of the LoRA and gate stages, beside plain PEFT.

    python benchmarks/training.py [arxiv.parquet]

All variants train on the same abstracts and titles with the embedded default model: those of the
file (columns `summaries` and `titles`), or of the demo data. The plain variant is a short script:
`Trainer` and `TrainingArguments` as they come, prompt and target padded together on the right. The
stages are measured through the trainer, sampler and collator that `loramix run` uses, in float32
and in the number format `fast`, with and without gradient checkpointing. Every variant runs in its
own process; the first steps warm up.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from measure import finish, report
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from loramix import GateConfig, MixtureModel
from loramix.bases.devices import number_format
from loramix.bases.loading import Base, load_base
from loramix.data.catalogue import built_in
from loramix.data.samples import prepare
from loramix.data.tasks import Task
from loramix.data.tokens.batches import IGNORED, Collator, Encoded
from loramix.data.tokens.encoding import encode
from loramix.experiment.training.trainer import MixingTrainer

VARIANTS = (
    "plain PEFT, Trainer defaults",
    "LoRA stage",
    "LoRA stage, fast",
    "LoRA stage, fast, checkpointing",
    "gate stage",
    "gate stage, fast",
)
STEPS, BATCH, WARM = 8, 8, 2


class Clock(TrainerCallback):
    """The times at which the steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())


def task(source: str | None) -> Task:
    """Return the title task on a file, or on the demo data."""
    limits = {"max_input_tokens": 192, "max_new_tokens": 32}
    if source is None:
        return built_in("demo-title").model_copy(update=limits)
    columns = {"source": source, "input_column": "summaries", "target_column": "titles"}
    return built_in("arxiv-title").model_copy(update={**columns, **limits})


def samples(base: Base, source: str | None) -> list[Encoded]:
    """Return the encoded training samples, as many as the steps take."""
    title = task(source)
    prepared = prepare([title], samples=200, seed=0)[title.name].samples[: STEPS * BATCH]
    return [
        encode(base.tokenizer, title, each.input, each.target, causal=True, chat=False)
        for each in prepared
    ]


def adapted(base: Base) -> PeftModel:
    """Return the model with a LoRA adapter of rank 16 on the attention projections."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(base.model, config)


class Listed(torch.utils.data.Dataset[Encoded]):
    """The samples of one task, as the trainer of the stages takes them."""

    def __init__(self, samples: Sequence[Encoded]) -> None:
        self.samples, self.sizes = samples, [len(samples)]
        self.lengths = [len(sample.prompt) + len(sample.target) for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        return self.samples[index]


def padded(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Return a batch padded on the right, as most scripts do."""
    ids = [torch.tensor(row.prompt + row.target) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    labels = [torch.tensor([IGNORED] * len(row.prompt) + row.target) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def tokens_per_second(
    trainer_class: type[Trainer],
    model: PeftModel | MixtureModel,
    data: Listed,
    collate: Callable[[Sequence[Encoded]], dict[str, Tensor]],
    **settings: object,
) -> float:
    """Train, and return the real tokens per second after the first steps."""
    clock, sizes = Clock(), []

    def counted(rows: Sequence[Encoded]) -> dict[str, Tensor]:
        sizes.append(sum(len(row.prompt) + len(row.target) for row in rows))
        return collate(rows)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            seed=0,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            logging_strategy="no",
            save_strategy="no",
            **settings,
        )
        trainer_class(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=counted,
            callbacks=[clock],
        ).train()
    return sum(sizes[WARM:STEPS]) / (clock.ends[STEPS - 1] - clock.ends[WARM - 1])


def mixture(base: Base) -> MixtureModel:
    """Return a mixture of two adapters of rank 16."""
    with tempfile.TemporaryDirectory() as folder:
        adapted(load_base("smollm2-135m")).save_pretrained(folder)
        experts = {"first": folder, "second": folder}
        return MixtureModel.from_experts(base.model, experts, gate=GateConfig())


def measured(variant: str, source: str | None) -> dict[str, float]:
    """Return the tokens per second of a variant."""
    base = load_base("smollm2-135m", dtype="fast" if "fast" in variant else "float32")
    data = Listed(samples(base, source))
    if variant == VARIANTS[0]:
        head = base.model.get_output_embeddings()
        head._forward_pre_hooks.clear()  # the hook of `load_base`
        return {"tokens/s": tokens_per_second(Trainer, adapted(base), data, padded)}
    model = mixture(base) if "gate" in variant else adapted(base)
    speed = tokens_per_second(
        MixingTrainer,
        model,
        data,
        Collator(base.tokenizer, causal=True),
        optim="adafactor",
        learning_rate=1e-3,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="group_by_length",
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=number_format("fast") == "bfloat16" and "fast" in variant,
        activation_checkpointing="checkpointing" in variant,
    )
    return {"tokens/s": speed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        finish(lambda: measured(options.variant, options.source))
    else:
        report(__file__, VARIANTS, rounds=1, arguments=[options.source] if options.source else [])
