"""The trainer of all models: losses per target token, and checkpoints of the trained parameters."""

import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from loramix.data.tokens.batches import IGNORED, Encoded, length_order
from loramix.errors import StageError
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
        self._refuse_no_number(total / tokens, "validation")
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

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        """Return the loss of one batch; StageError if it is no number."""
        loss: Tensor = super().training_step(*args, **kwargs)
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
        """Seal the checkpoint that was just written."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
