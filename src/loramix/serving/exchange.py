"""One request's jobs between the server's and the engine's thread."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from starlette.requests import Request

from loramix.serving.asking import Prompt
from loramix.serving.engine import Engine
from loramix.serving.jobs import End, Event, Job, Piece, Sampling, ServingError
from loramix.serving.metrics import Metrics


class ClientGoneError(Exception):
    """The client has hung up."""


class Exchange:
    """The jobs of one request, one for each choice.

    weights: at which to answer; None lets the gates decide.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[Prompt, Sampling]],
        weights: Mapping[str, float] | None,
        *,
        metrics: Metrics,
    ) -> None:
        self._loop, self._metrics = asyncio.get_running_loop(), metrics
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()  # None: hung up
        self.jobs = [
            Job(prompt.ids, sampling, self._deliver(index), weights, prompt.chat)
            for index, (prompt, sampling) in enumerate(prompts)
        ]

    def submit(self, engine: Engine) -> None:
        """Hand the jobs to the engine; raises ServingError if it takes no more."""
        try:
            engine.submit(self.jobs)
        except ServingError as error:
            self._metrics.failed(error.code or "error")
            raise

    async def follow(self, request: Request) -> AsyncIterator[tuple[int, Piece | End]]:
        """Yield the number of a choice and what comes of it, until all have ended.

        Raises ServingError if one fails, and ClientGoneError if nobody listens any more; the others
        are then given up.
        """
        gone = asyncio.create_task(_hung_up(request))
        gone.add_done_callback(lambda task: self._events.put_nowait(None))
        left, begun = len(self.jobs), set[int]()
        try:
            while left:
                told = await self._events.get()
                if told is None:
                    raise ClientGoneError
                index, event = told
                job = self.jobs[index]
                if isinstance(event, ServingError):
                    self._metrics.failed(event.code or "error")
                    raise event
                if index not in begun:
                    begun.add(index)
                    self._metrics.began(job.arrived)
                if isinstance(event, End):
                    left -= 1
                    self._metrics.ended(job.arrived, len(job.ids), event)
                yield index, event
        except (ClientGoneError, asyncio.CancelledError, GeneratorExit):
            self._metrics.failed("hung_up")
            raise
        finally:
            gone.cancel()
            for job in self.jobs:
                job.cancel()

    def _deliver(self, index: int) -> Callable[[Event], None]:
        def deliver(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return deliver


async def _hung_up(request: Request) -> None:
    """Return once the client has hung up; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
