"""The embedded engine: one thread that owns the model, and the rows that it generates together.

Between two tokens of the rows that generate, new rows may join: their prompts are read in one pass,
and they stand beside the others from then on. Rows that end, or that nobody waits for, leave.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.model import MixtureModel
from loramix.serving.batch import Batch, Passes
from loramix.serving.jobs import End, Event, Job, Limits, ServingError
from loramix.serving.probing import pads
from loramix.serving.queue import Waiting
from loramix.serving.rows import Row, RowMaker

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class Engine:
    """Generates for many at once with one mixture, as `MixtureModel.generate` does for each alone.

    `start` it, `submit` jobs from any thread, `stop` it. Jobs are told in the engine's thread.
    """

    def __init__(self, mixture: MixtureModel, limits: Limits | None = None) -> None:
        if mixture.gate_config.context == "reference":
            raise MixtureError(
                "the reference gate averages over the whole target, which does not exist yet in "
                "generation, so it cannot be served; train a gate with context='prompt'"
            )
        self.mixture, self.limits = mixture.eval(), limits or Limits()
        self._passes, self._maker = Passes(mixture), RowMaker(mixture)
        self._batches: list[Batch] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._wake, self._stopping = threading.Condition(), False
        self._pads = pads(mixture, self._passes, self._maker)
        same_length = not self._pads and not mixture.config.is_encoder_decoder
        self._waiting = Waiting(self.limits, same_length=same_length)
        self._thread = threading.Thread(target=self._run, name="loramix-engine", daemon=True)

    def start(self) -> "Engine":
        """Start the engine's thread, and return the engine."""
        self._thread.start()
        return self

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its present pass; what still generates or waits gets an error."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the engine takes jobs."""
        return self._thread.is_alive() and not self._stopping

    @property
    def rows(self) -> int:
        """The number of rows that generate."""
        return sum(len(batch.rows) for batch in self._batches)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a place."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take on jobs, all or none; raises ServingError (503) if too many wait already."""
        with self._wake:
            if not self.alive:
                raise ServingError("the server is stopping", status=503, code="stopping")
            if len(self._waiting) + len(jobs) > self.limits.waiting:
                raise ServingError(
                    f"{len(self._waiting)} sequences wait already and {len(jobs)} more were asked "
                    f"for; the limit is {self.limits.waiting}. Try again later",
                    status=503,
                    code="queue_full",
                )
            self._waiting.add(jobs)
            self._wake.notify()

    def call(self, function: Callable[[], Value]) -> "Future[Value]":
        """Run a function in the engine's thread, between two passes."""
        future: Future[Value] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._wake:
            if not self.alive:
                raise ServingError("the server is stopping", status=503, code="stopping")
            if len(self._calls) >= self.limits.waiting:
                text = f"{len(self._calls)} calls wait already; try again later"
                raise ServingError(text, status=503, code="queue_full")
            self._calls.append(run)
            self._wake.notify()
        return future

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait():
                self._leave()
                if call := self._next_call():
                    call()
                self._admit()
                for batch in list(self._batches):
                    self._step(batch)
        stopped = ServingError("the server has stopped", status=503, code="stopping")
        for batch in self._batches:
            for row in batch.rows:
                _tell(row.job, stopped)
        for job in self._waiting.drain():
            _tell(job, stopped)

    def _wait(self) -> bool:
        """Wait for something to do; return whether to go on."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._batches or self._calls or len(self._waiting)
            )
            return not self._stopping

    def _next_call(self) -> Callable[[], None] | None:
        """Take the call that came first: one between two passes, so that calls hold up no row."""
        with self._wake:
            return self._calls.popleft() if self._calls else None

    def _leave(self) -> None:
        """Let those leave for whom nobody waits any more, and those whose time is over."""
        now = time.monotonic()
        with self._wake:
            over = self._waiting.take_over(now)
        for job in over:
            self._give_up(job)
        for batch in list(self._batches):
            for row in batch.rows:
                if self._is_over(row.job, now):
                    self._give_up(row.job)
            self._keep(batch, [not self._is_over(row.job, now) for row in batch.rows])

    def _is_over(self, job: Job, now: float) -> bool:
        return job.cancelled or now - job.arrived > self.limits.seconds

    def _give_up(self, job: Job) -> None:
        if not job.cancelled:
            seconds = f"{self.limits.seconds:g} seconds"
            text = f"the answer was not complete within {seconds}, the limit of this server"
            _tell(job, ServingError(text, status=503, code="timeout"))

    def _keep(self, batch: Batch, kept: Sequence[bool]) -> None:
        if not any(kept):
            self._batches.remove(batch)
        elif not all(kept):
            batch.keep([row for row, stays in enumerate(kept) if stays])

    def _admit(self) -> None:
        """Read the prompts of some that wait, if there is room."""
        with self._wake:
            jobs = self._waiting.next(self.limits.rows - self.rows)
        if not jobs:
            return
        rows: list[Row] = []
        for job in jobs:
            try:
                rows.append(self._maker.row(job))
            except Exception as error:
                _fail(job, error)
        if rows:
            self._begin(rows)

    def _begin(self, rows: list[Row]) -> None:
        """Read prompts; where that fails, each alone, so that only those at fault get an error."""
        try:
            batch, logits_BV = self._passes.begin(rows)
        except Exception as error:
            if len(rows) == 1:
                _fail(rows[0].job, error)
                return
            for row in rows:
                self._begin([row])
            return
        self._batches.append(batch)
        self._advance(batch, logits_BV)
        if batch in self._batches:
            self._merge(batch)

    def _merge(self, batch: Batch) -> None:
        """Join a batch to another, where both can share one cache."""
        for other in self._batches:
            if other is not batch and other.can_join(batch, padded=self._pads):
                other.join(batch)
                self._batches.remove(batch)
                return

    def _step(self, batch: Batch) -> None:
        """Generate the next token of every row."""
        last = [row.tokens[-1:] for row in batch.rows]
        try:
            ids_B1 = torch.tensor(last, device=self.mixture.device)
            logits_BV = self._passes.go_on(batch, ids_B1)
        except Exception as error:
            _log("a pass failed; its rows go on one by one", error)
            self._batches.remove(batch)  # its cache may hold the pass in some layers and not others
            for row in batch.rows:
                self._begin([row])
            return
        self._advance(batch, logits_BV)

    def _advance(self, batch: Batch, logits_BV: Float[Tensor, "B V"]) -> None:
        """Choose every row's next token, tell it, and let rows that end leave."""
        likeliest = logits_BV.argmax(-1).tolist()
        kept = [
            self._take(batch, index, row, likeliest[index], logits_BV[index])
            for index, row in enumerate(batch.rows)
        ]
        self._keep(batch, kept)

    def _take(
        self, batch: Batch, index: int, row: Row, likeliest: int, logits_V: Float[Tensor, " V"]
    ) -> bool:
        """Give a row its next token; return whether it goes on."""
        try:
            token = likeliest if row.plain else row.choose(logits_V, self._start(row))
            piece = row.take(token, logits_V)
        except Exception as error:
            _fail(row.job, error)
            return False
        if piece.text or piece.scores:
            _tell(row.job, piece)
        if row.finished:
            _tell(row.job, End(row.finished, len(row.tokens), batch.routing.means(index)))
        return not row.finished

    def _start(self, row: Row) -> Sequence[int]:
        """Return what precedes the generated tokens in what `generate` returns."""
        config = self.mixture.config
        return [config.decoder_start_token_id] if config.is_encoder_decoder else row.job.ids


def _fail(job: Job, error: Exception) -> None:
    """Tell whoever waits that this job failed."""
    _log("a request failed", error)
    _tell(job, ServingError("the model failed on this request", status=500, code="internal_error"))


def _log(what: str, error: Exception) -> None:
    """Log an error without its words, which may hold a part of what was asked."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s\n%s", what, type(error).__name__, trace)


def _tell(job: Job, event: Event) -> None:
    try:
        job.deliver(event)
    except Exception:  # such as an event loop that has ended
        job.cancel()
