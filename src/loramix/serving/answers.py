"""OpenAI's forms of answers, whole and in chunks."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from loramix.serving.jobs import End, Piece, ServingError, TokenScore

Json: TypeAlias = dict[str, object]
Kind = Literal["chat", "completion"]


@dataclass
class Choice:
    """One answer as it comes."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    end: End | None = None

    def add(self, piece: Piece) -> None:
        """Add the next part."""
        self.text += piece.text
        self.scores += piece.scores


class Writer:
    """Writes the answers to one request.

    token_text: what a token looks like by itself. layers: whether every layer's weights are told.
    """

    def __init__(
        self,
        kind: Kind,
        model: str,
        experts: Sequence[str],
        token_text: Callable[[int], str],
        *,
        layers: bool,
    ) -> None:
        self._kind, self._model, self._experts, self._layers = kind, model, experts, layers
        self._text = token_text
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, choices: Sequence[Choice], prompt_tokens: int) -> Json:
        """Return the response with all choices."""
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        written = [self._choice(index, choice) for index, choice in enumerate(choices)]
        ends = [choice.end for choice in choices if choice.end is not None]
        return {
            **self._head(name),
            "choices": written,
            "usage": usage(prompt_tokens, ends),
            "loramix": self._routing(ends),
        }

    def first(self, index: int) -> Json | None:
        """Return the chunk with which a chat's answer begins."""
        if self._kind != "chat":
            return None
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, index: int, piece: Piece, offset: int) -> Json:
        """Return the chunk of the next part; offset: the length of the text before it."""
        scores = self._scores(piece.scores, offset) if piece.scores else None
        if self._kind == "chat":
            return self._chunk(index, {"content": piece.text}, scores, None)
        return self._chunk(index, piece.text, scores, None)

    def last(self, index: int, end: End) -> Json:
        """Return the chunk that ends an answer, with the mean routing weights used."""
        chunk = self._chunk(index, {} if self._kind == "chat" else "", None, end.reason)
        return {**chunk, "loramix": self._routing([end])}

    def counted(self, prompt_tokens: int, ends: Sequence[End]) -> Json:
        """Return the chunk with the usage of a whole stream."""
        name = "chat.completion.chunk" if self._kind == "chat" else "text_completion"
        head = {**self._head(name), "choices": [], "usage": usage(prompt_tokens, ends)}
        return {**head, "loramix": self._routing(ends)}

    def _head(self, name: str) -> Json:
        return {"id": self._id, "object": name, "created": self._created, "model": self._model}

    def _choice(self, index: int, choice: Choice) -> Json:
        assert choice.end is not None
        scores = self._scores(choice.scores, 0) if choice.scores else None
        body: Json = {"text": choice.text}
        if self._kind == "chat":
            body = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        told = {"logprobs": scores, "finish_reason": choice.end.reason}
        return {"index": index, **body, **told, "loramix": self._routing([choice.end])}

    def _chunk(self, index: int, text: Json | str, scores: Json | None, end: str | None) -> Json:
        body = {"delta" if self._kind == "chat" else "text": text}
        choice = {"index": index, **body, "logprobs": scores, "finish_reason": end}
        name = "chat.completion.chunk" if self._kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [choice]}

    def _routing(self, ends: Sequence[End]) -> Json:
        means = [end.means() for end in ends]
        mean = [sum(column) / len(means) for column in zip(*means, strict=True)]
        told: Json = {"weights": dict(zip(self._experts, mean, strict=True))}
        if self._layers and len(ends) == 1:
            layers = ends[0].layers.items()
            told["layers"] = {
                name: dict(zip(self._experts, each, strict=True)) for name, each in layers
            }
        return told

    def _scores(self, scores: Sequence[TokenScore], offset: int) -> Json:
        if self._kind == "chat":
            return {"content": [self._chat_score(score) for score in scores], "refusal": None}
        offsets: list[int] = []
        for score in scores:
            offsets.append(offset)
            offset += len(self._text(score.token))
        return {
            "tokens": [self._text(score.token) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                {self._text(token): logprob for token, logprob in score.top} for score in scores
            ],
            "text_offset": offsets,
        }

    def _chat_score(self, score: TokenScore) -> Json:
        top = [self._token(token, logprob) for token, logprob in score.top]
        return {**self._token(score.token, score.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> Json:
        text = self._text(token)
        whole = "\ufffd" not in text  # else it is a part of a character
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def usage(prompt_tokens: int, ends: Sequence[End]) -> Json:
    """Return how many tokens a request took."""
    new = sum(end.new_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
    }


def error_body(error: ServingError) -> Mapping[str, Json]:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
    kind = kinds.get(error.status) or (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }
