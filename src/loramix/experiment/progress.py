"""Progress of long work: one bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loramix.experiment.processes import processes

Item = TypeVar("Item")
log = logging.getLogger("loramix")
_LINE_SECONDS = 20.0  # between two lines, where there is no terminal
_WORTH_SECONDS = 1.0  # work that took longer is logged at its end


class Bar:
    """A bar of `total` steps on standard error; without a terminal, a log line every 20 seconds.

    Of several processes, the first one shows it.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        # monotonic, in seconds: a clock that is set meanwhile does not count
        self.started = self.spoke = time.monotonic()
        self.live: tuple[Progress, TaskID] | None = None  # None: no terminal
        if sys.stderr.isatty() and processes().first:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            ]
            progress = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
            )
            progress.start()
            self.live = progress, progress.add_task(label, total=total, note="")

    def step(self, *, to: int | None = None, note: str | None = None) -> None:
        """Advance by one step, or to a given one."""
        self.done = self.done + 1 if to is None else to
        self.note = self.note if note is None else note
        if self.live:
            self.live[0].update(
                self.live[1], completed=self.done, note=f"{self._rate()} {self.note}"
            )
        elif time.monotonic() - self.spoke > _LINE_SECONDS:
            self.spoke = time.monotonic()
            log.info(
                "%s: %d of %d, %s, %s left %s",
                self.label,
                self.done,
                self.total,
                self._rate(),
                self._left(),
                self.note,
            )

    def close(self) -> None:
        """Take the bar off the screen, and log the time of work that was worth a bar."""
        if self.live:
            self.live[0].stop()
        seconds = time.monotonic() - self.started
        if seconds > _WORTH_SECONDS:
            log.info(
                "%s: %d of %d in %.0f s %s", self.label, self.done, self.total, seconds, self.note
            )

    def _rate(self) -> str:
        return f"{self.done / max(time.monotonic() - self.started, 1e-6):.2f} steps/s"

    def _left(self) -> str:
        elapsed = time.monotonic() - self.started
        return f"{elapsed / max(self.done, 1) * (self.total - self.done):.0f} s"


def track(items: Sequence[Item], label: str | None) -> Iterator[Item]:
    """Yield the items with a bar that moves with each.

    label: None for a part of other work, which has no bar of its own.
    """
    if label is None:
        yield from items
        return
    bar = Bar(label, len(items))
    try:
        for item in items:
            yield item
            bar.step()
    finally:
        bar.close()


class TrainingProgress(TrainerCallback):  # type: ignore[misc]
    """Shows a training run on a bar, with the last losses beside it."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Bar | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Open the bar."""
        self.bar = Bar(self.label, state.max_steps)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Move the bar."""
        if self.bar:
            self.bar.step(to=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Show the losses."""
        entry = state.log_history[-1] if state.log_history else {}
        shown = {"loss": "training loss", "eval_loss": "validation loss"}
        notes = [f"{label} {entry[key]:.3f}" for key, label in shown.items() if key in entry]
        if self.bar and notes:
            self.bar.note = ", ".join(notes)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.close()
