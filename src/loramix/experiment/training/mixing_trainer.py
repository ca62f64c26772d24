"""The trainer of all models: losses per target token, and checkpoints of the trained parameters."""

import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from loramix.data.tokens.batches import IGNORED, Encoded, length_order
from loramix.errors import StageError
from loramix.experiment.processes import processes
from loramix.experiment.run import LOSS_COLUMNS, LOSSES
from loramix.experiment.training.checkpoints import (
    TRAINABLE,
    last_checkpoint,
    load_progress,
    load_trainable,
    refuse_damaged,
    save_progress,
    save_trainable,
    seal,
)
from loramix.experiment.training.sampler import TurnSampler
from loramix.experiment.training.tokens import Samples
from loramix.report.content import LossRow
from loramix.report.plots import plot_losses
from loramix.storage.files import write_csv


class MixingTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss is the mean over target tokens, whatever the accumulation and the number
    of processes.

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
        outputs = model(**_without_task(inputs))
        loss: Tensor = outputs.loss
        if num_items_in_batch is not None:  # the target tokens of all batches of all processes
            # a spread base has its loss on the last device, and the labels on the first
            tokens = (inputs["labels"] != IGNORED).sum().to(loss.device)
            loss = loss * tokens / _on(loss, num_items_in_batch)
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
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
        self,
        dataloader: DataLoader[Encoded],
        description: str,
        *args: object,
        metric_key_prefix: str = "eval",
        **kwargs: object,
    ) -> EvalLoopOutput:
        """Return the mean loss per target token of all batches, which the processes share."""
        model = self.model.eval()
        # (2,): the summed loss and the number of target tokens
        sums = torch.zeros(2, device=self.args.device)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad():  # not `prediction_step`, in which all wait at every batch
                loss = model(**_without_task(inputs)).loss
            counted = (inputs["labels"] != IGNORED).sum().to(sums.device)
            sums += torch.stack([loss.float().to(sums.device) * counted, counted])
        total, tokens = self.accelerator.reduce(sums).tolist()
        self._refuse_no_number(total / tokens, "validation")
        measured = {f"{metric_key_prefix}_loss": total / tokens}
        return EvalLoopOutput(None, None, measured, len(self.eval_dataset))

    def _get_train_sampler(self, train_dataset: Dataset[Encoded] | None = None) -> Sampler[int]:
        data: Samples = self.train_dataset
        lengths = data.lengths if self.args.train_sampling_strategy == "group_by_length" else None
        # of all processes: accelerate deals out its parts, so that each sees every task
        batch = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return TurnSampler(data.sizes, batch, self.args.seed, lengths)

    def _get_eval_sampler(self, eval_dataset: Samples) -> list[int]:
        return length_order(eval_dataset.lengths)

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        """Return the loss of one batch of all processes; StageError if it is no number."""
        # the same in all: a checkpoint keeps the sum of the first one
        own = super().training_step(*args, **kwargs).to(self.args.device)
        loss: Tensor = self.accelerator.reduce(own, "mean")
        self._refuse_no_number(float(loss), "training")
        return loss

    def progress(self) -> dict[str, Tensor]:
        """Return what has been summed up since the last line of the log."""
        return {
            "loss": self._tr_loss.detach().cpu(),
            "logged_step": torch.tensor(self._globalstep_last_logged),
        }

    def go_on(self, progress: Mapping[str, Tensor]) -> None:
        """Sum up from there on."""
        self._tr_loss = progress["loss"].to(self.args.device)
        self._globalstep_last_logged = int(progress["logged_step"])

    def _refuse_no_number(self, loss: float, kind: str) -> None:
        if math.isfinite(loss):
            return
        folder = Path(self.args.output_dir)
        kept = last_checkpoint(folder)
        where = f"the checkpoint before it is {kept}" if kept else "there is no checkpoint before"
        raise StageError(
            f"the {kind} loss is {loss} at step {self.state.global_step + 1}, so training stops; "
            f"{where}; try a smaller learning_rate (it is {self.args.learning_rate:g}), or "
            "base.dtype float32"
        )

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return  # the first process saves
        folder = Path(output_dir or self.args.output_dir)
        save_trainable(self.model, folder)
        save_progress(self.progress(), folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trainable(model or self.model, Path(resume_from_checkpoint) / TRAINABLE)

    def _load_best_model(self) -> None:
        # by its name: the run folder may have been moved since
        best = Path(self.args.output_dir) / Path(self.state.best_model_checkpoint).name
        refuse_damaged(best)
        load_trainable(self.model, best / TRAINABLE)


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Lets a trainer go on with its sums, and seals each of its checkpoints."""

    def __init__(self, trainer: MixingTrainer, started_from: Path | None) -> None:
        self.trainer, self.started_from = trainer, started_from

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Set the sums, which transformers has set to zero."""
        if self.started_from is not None:
            self.trainer.go_on(load_progress(self.started_from))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Seal the checkpoint that was just written, each process its random state."""
        processes().barrier()
        if args.should_save:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _on(loss: Tensor, items: Tensor | int) -> Tensor | int:
    return items.to(loss.device) if isinstance(items, Tensor) else items


def _without_task(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key != "task"}
