"""Training through `transformers.Trainer`: resumable, with the best weights kept."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from loramix.bases.devices import number_format
from loramix.data.leaks import RECORD, record
from loramix.data.tasks import Task
from loramix.data.tokens.batches import IGNORED, Collator, Encoded, length_order
from loramix.experiment.answers import Model, accepted_inputs
from loramix.experiment.progress import TrainingProgress
from loramix.experiment.recipe import TrainSpec
from loramix.experiment.run import CHECKPOINTS, LOSS_COLUMNS, LOSSES, Run
from loramix.experiment.training.sampler import TurnSampler
from loramix.experiment.training.tokens import Samples, encode_samples
from loramix.report.content import LossRow
from loramix.report.plots import plot_losses
from loramix.storage.files import write_csv

log = logging.getLogger("loramix")
_TRAINABLE = "trainable.safetensors"


class MixingTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss is the mean over target tokens, whatever the accumulation.

    Its checkpoints hold the trained parameters alone.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the mean loss per target token; in training, of the whole accumulated batch."""
        outputs = model(**{key: value for key, value in inputs.items() if key != "task"})
        loss: Tensor = outputs.loss
        if num_items_in_batch is not None:  # the target tokens of all accumulated batches
            loss = loss * (inputs["labels"] != IGNORED).sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def write_history(self, folder: Path, label: str) -> None:
        """Write losses.csv and losses.png."""
        rows = []
        for entry in self.state.log_history:
            training, validation = entry.get("loss"), entry.get("eval_loss")
            if training is not None or validation is not None:
                step, epoch = int(entry["step"]), float(entry["epoch"])
                rows.append(LossRow(step, epoch, training, validation))
        write_csv(folder / LOSSES, LOSS_COLUMNS, map(astuple, rows))
        plot_losses(label, rows, folder / "losses.png")

    def evaluation_loop(
        self, *args: object, metric_key_prefix: str = "eval", **kwargs: object
    ) -> EvalLoopOutput:
        """Put the mean per target token in the place of the library's mean of batch means."""
        # (2,): the summed loss and the number of target tokens
        self._loss_and_tokens = torch.zeros(2, device=self.args.device)
        output: EvalLoopOutput = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        total, tokens = self.accelerator.reduce(self._loss_and_tokens).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / tokens
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *args: object, **kwargs: object
    ) -> tuple[Tensor | None, object, object]:
        """Return the library's result, and count the batch's target tokens."""
        result: tuple[Tensor, object, object] = super().prediction_step(
            model, inputs, *args, **kwargs
        )
        counted = (inputs["labels"] != IGNORED).sum().to(self.args.device)
        self._loss_and_tokens += torch.stack([result[0].float() * counted, counted])
        return result

    def _get_train_sampler(self, train_dataset: Dataset[Encoded] | None = None) -> Sampler[int]:
        data: Samples = self.train_dataset
        lengths = data.lengths if self.args.train_sampling_strategy == "group_by_length" else None
        batch = self.args.per_device_train_batch_size
        return TurnSampler(data.sizes, batch, self.args.seed, lengths)

    def _get_eval_sampler(self, eval_dataset: Samples) -> list[int]:
        return length_order(eval_dataset.lengths)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable_state(self.model), folder / _TRAINABLE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trainable(model or self.model, Path(resume_from_checkpoint) / _TRAINABLE)

    def _load_best_model(self) -> None:
        load_trainable(self.model, Path(self.state.best_model_checkpoint) / _TRAINABLE)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name."""
    return {
        name: value.detach().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


@torch.no_grad()
def load_trainable(model: nn.Module, file: Path) -> None:
    """Set the trained parameters from a file that must hold all of them."""
    saved = load_file(file)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(saved[name])


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
    _announce(model, dtype, spec, training, validation, label)
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    trainer.write_history(folder, label)


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
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
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


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint, if there is one."""
    # the trainer's state is the last file that a checkpoint gets
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None
