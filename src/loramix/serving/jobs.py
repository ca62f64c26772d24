"""What is asked of the engine, and what it gives back: plain data, without tensors or HTTP."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from loramix.errors import LoramixError

FinishReason = Literal["stop", "length"]


class ServingError(LoramixError):
    """A request that is not answered, in OpenAI's terms: status, code and the parameter at fault.

    status: of the HTTP response.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    rows: sequences that generate together. waiting: sequences that wait for a place. prompt_tokens,
    new_tokens: of one sequence. prefill_tokens: of the prompts that are read in one pass, padding
    included; a longer prompt is read alone. seconds: from arrival to the end of the answer.
    body_bytes: of one HTTP request. drain_seconds: for running answers, once the server is to stop.
    """

    rows: int = 16
    waiting: int = 256
    prompt_tokens: int = 4096
    new_tokens: int = 1024
    prefill_tokens: int = 2048
    seconds: float = 300.0
    body_bytes: int = 1 << 20
    drain_seconds: int = 30


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when an answer ends.

    temperature: 0 takes the likeliest token. logprobs: how many alternatives are told beside each
    token's log-probability; None tells neither.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def numbered(self, choice: int) -> "Sampling":
        """Return the sampling of one among several answers to a prompt: each has its own seed."""
        return self if self.seed is None else replace(self, seed=self.seed + choice)


@dataclass(frozen=True)
class TokenScore:
    """A generated token with its log-probability, and the likeliest ones in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of an answer. The text may be empty, as a token can end within a character."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class End:
    """The end of an answer: why, how many tokens it has, and the mean routing weights used.

    layers: layer -> the experts' weights, the mean over all tokens that the layer read.
    """

    reason: FinishReason
    new_tokens: int
    layers: Mapping[str, Sequence[float]]

    def means(self) -> list[float]:
        """Return the experts' weights, the mean over the layers."""
        return [
            sum(column) / len(self.layers) for column in zip(*self.layers.values(), strict=True)
        ]


Event: TypeAlias = Piece | End | ServingError


@dataclass
class Job:
    """One sequence to generate.

    ids: the prompt. weights: by expert, in place of the gates' decisions; None lets them decide.
    chat: whether the answer is a turn of a chat template. deliver: takes the answer's pieces and
    its end or error, called in the engine's thread.
    """

    ids: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Event], None]
    weights: Mapping[str, float] | None = None
    chat: bool = False
    arrived: float = field(default_factory=time.monotonic)
    passed_over: int = 0
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Give up the answer; its row is free at the engine's next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled.is_set()
