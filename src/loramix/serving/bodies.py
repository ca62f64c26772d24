"""The bodies of requests, as OpenAI's clients send them; what cannot be honoured is refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_WEIGHT = 1000.0  # far beyond use, and far from where numbers end
MOST_LOGPROBS = 20


class LoramixOptions(BaseModel):
    """What a request says beyond OpenAI's API, under the key `loramix`.

    weights: of every expert, in place of the gates' decisions; unnamed experts get 0, {} is the
    base. task: whose prompt template the prompt is put into. layers: whether to tell the weights of
    every layer.
    """

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT)]] | None = None
    task: str | None = None
    layers: bool = False


def whole_characters(values: object) -> object:
    """Return a body as it is; raises ValueError for a half of a character, which is no text."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half of a character (a lone surrogate)") from error
    return values


class StreamOptions(BaseModel):
    """How a stream is told."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against listeners, which this server never adds


class _Body(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**62), le=2**62)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    loramix: LoramixOptions = LoramixOptions()
    # Taken where they ask for nothing; see `_refuse_effects`.
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    # Of no meaning here.
    user: str | None = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings before which an answer ends."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    _whole = model_validator(mode="before")(whole_characters)

    @model_validator(mode="after")
    def _refuse_effects(self) -> "_Body":
        for name in self._without_effect():
            if getattr(self, name):
                raise ValueError(f"'{name}' is not supported; leave it out")
        return self

    def _without_effect(self) -> Sequence[str]:
        return "frequency_penalty", "presence_penalty", "logit_bias"


class CompletionBody(_Body):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _refuse_best_of(self) -> "CompletionBody":
        if self.best_of not in (None, 1, self.n):
            raise ValueError("'best_of' is not supported; leave it out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, texts or token ids, one by one."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)  # type: ignore[arg-type]

    def _without_effect(self) -> Sequence[str]:
        return *super()._without_effect(), "echo", "suffix"


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ResponseFormat(BaseModel):
    """The form of an answer."""

    type: Literal["text"]


class ChatBody(_Body):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None
    tool_choice: object = None
    parallel_tool_calls: object = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: object = None
    verbosity: object = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self

    def _without_effect(self) -> Sequence[str]:
        return *super()._without_effect(), "tools", "functions"


class RoutingBody(BaseModel):
    """The body of /v1/routing: a prompt, or the messages of a conversation."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    task: str | None = None

    _whole = model_validator(mode="before")(whole_characters)

    @model_validator(mode="after")
    def _check_one(self) -> "RoutingBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self
