"""Training through `transformers.Trainer`: resumable, with the best weights kept."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from loramix.bases.devices import number_format
from loramix.bases.spreading import refuse_untrainable
from loramix.data.leaks import RECORD, record
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Collator
from loramix.experiment.answers import Model, accepted_inputs
from loramix.experiment.processes import processes, refuse_several_processes
from loramix.experiment.progress import TrainingProgress
from loramix.experiment.recipe import TrainSpec
from loramix.experiment.run import CHECKPOINTS, Run
from loramix.experiment.training.checkpoints import last_checkpoint
from loramix.experiment.training.mixing_trainer import Checkpoints, MixingTrainer
from loramix.experiment.training.tokens import Samples, encode_samples

log = logging.getLogger("loramix")


def train(
    run: Run,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainSpec,
    tasks: Sequence[Task],
    *,
    folder: Path,
    label: str,
    trainer_class: Callable[..., MixingTrainer] = MixingTrainer,
    bare: float = 0.0,
) -> None:
    """Train `model` on `tasks`, taking turns, and leave the best weights in it.

    bare: the share of the training prompts that are the input alone; always the same ones.

    Writes losses.csv, losses.png and the record of its samples to `folder`. Checkpoints lie in
    `folder`/checkpoints; if there are any, training goes on from the last.
    """
    recipe, causal = run.recipe, not model.config.is_encoder_decoder
    chosen = run.training_samples(spec, tasks)
    encoded = partial(
        encode_samples,
        tokenizer=tokenizer,
        recipe=recipe,
        tasks=tasks,
        causal=causal,
        bare=bare,
        cache=run.token_folder,
    )
    learn(
        model,
        tokenizer,
        encoded(chosen["train"]),
        encoded(chosen["validation"]),
        spec,
        seed=recipe.seed,
        dtype=recipe.base.dtype,
        folder=folder,
        label=label,
        trainer_class=trainer_class,
    )
    if processes().first:
        record(folder / RECORD, chain(*chosen["train"], *chosen["validation"]))


def learn(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    training: Samples,
    validation: Samples,
    spec: TrainSpec,
    *,
    seed: int,
    dtype: str,
    folder: Path,
    label: str,
    trainer_class: Callable[..., MixingTrainer] = MixingTrainer,
) -> None:
    """Train `model` on encoded samples, and leave the best weights in it; see `train`.

    dtype: the number format of the base.
    """
    if processes().size == 1:  # else the library would spread a training that nobody has joined
        refuse_several_processes("this training")
    refuse_untrainable(model)
    causal = not model.config.is_encoder_decoder
    steps, checkpoints = _steps(training, spec), folder / CHECKPOINTS
    trainer = trainer_class(
        model=model,
        args=_arguments(spec, checkpoints, steps=steps, seed=seed, dtype=dtype),
        train_dataset=training,
        eval_dataset=validation,
        data_collator=Collator(tokenizer, causal, accepted_inputs(model)),
        callbacks=[EarlyStoppingCallback(spec.patience), TrainingProgress(label)],
    )
    # compute_loss divides by the tokens of the whole accumulated batch
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    _keep_apart(model)
    _announce(model, dtype, spec, training, validation, label)
    last = processes().once(lambda: last_checkpoint(checkpoints))
    trainer.add_callback(Checkpoints(trainer, last))
    if spec.epochs:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if processes().first:
        trainer.write_history(folder, label)


def _keep_apart(model: Model) -> None:
    """Let processes that train together exchange nothing that is not trained: each has it already,
    and experts, which are buffers, would be sent at every step.
    """
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    everything = chain(model.named_parameters(), model.named_buffers())
    names = [name for name, _ in everything if name not in trained]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, names)  # type: ignore[no-untyped-call]


def _announce(
    model: Model,
    dtype: str,
    spec: TrainSpec,
    training: Samples,
    validation: Samples,
    label: str,
) -> None:
    """Log the sizes of the model, its trained part and the data, and the optimizer."""
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    total = sum(each.numel() for each in model.parameters())
    log.info(
        "%s: %s of %s parameters in %s, %d training and %d validation samples, %s at %g",
        label,
        f"{trained:,}",
        f"{total:,}",
        number_format(dtype),
        len(training),
        len(validation),
        spec.optimizer,
        spec.learning_rate,
    )


def _steps(data: Samples, spec: TrainSpec) -> int:
    """Return the optimizer steps of one epoch."""
    batches = sum(-(-size // spec.batch_size) for size in data.sizes)
    return -(-batches // spec.accumulation)


def _arguments(
    spec: TrainSpec, folder: Path, *, steps: int, seed: int, dtype: str
) -> TrainingArguments:
    schedule: str = spec.schedule
    if spec.schedule == "constant" and spec.warmup_steps:
        schedule = "constant_with_warmup"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size // processes().size,
        per_device_eval_batch_size=spec.batch_size,
        # validation batches stay whole, so some processes get one less than others
        accelerator_config={"even_batches": False},
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.learning_rate,
        optim="adafactor" if spec.optimizer == "adafactor" else "adamw_torch",
        lr_scheduler_type=schedule,
        warmup_steps=spec.warmup_steps,
        activation_checkpointing=spec.gradient_checkpointing,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the best and the last
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # of early stopping: the patience used up
        logging_steps=max(1, steps // 10),  # about ten entries an epoch
        train_sampling_strategy="group_by_length" if spec.group_by_length else "random",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        # what is trained stays in float32 and is computed with in bfloat16
        bf16=number_format(dtype) == "bfloat16",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,  # `task` is no input of the model
        prediction_loss_only=True,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
