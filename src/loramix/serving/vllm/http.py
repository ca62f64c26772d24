"""OpenAI's API with a mixture's models and weights, in the words of vLLM's own server.

`model: NAME:EXPERT` and `loramix: {"weights": …}` become `vllm_xargs`. vLLM would ignore a body's
`loramix` without a word.
"""

import json
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loramix.serving.vllm.served import Served

_PATHS = ("/v1/completions", "/v1/chat/completions")
_KEY = "loramix"


class RefusedError(Exception):
    """What a body asks and cannot get, in words."""


class Translation:
    """Translates the bodies of requests to a mixture, and leaves all else to vLLM."""

    served: Served

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._models = app, self.served.models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        whole = await _body(receive)
        try:
            body = self._translated(scope["path"], whole)
        except RefusedError as error:
            told = {"message": str(error), "type": "invalid_request_error", "param": _KEY}
            await JSONResponse({"error": {**told, "code": None}}, 400)(scope, receive, send)
            return
        await self._app(_resized(scope, len(body)), _replayed(body, receive), send)

    def _translated(self, path: str, body: bytes) -> bytes:
        """Return the body in vLLM's words; what is no JSON object stays as it is."""
        try:
            content = json.loads(body)
        except ValueError:
            return body
        if not isinstance(content, dict):
            return body
        asked, alone = content.get(_KEY), self._models.get(str(content.get("model")))
        if content.get("use_beam_search"):
            raise RefusedError("beam search starts each step anew, with the answer as its prompt")
        if asked is None and alone is None:
            return body
        if path not in _PATHS:
            raise RefusedError(f"weights by hand and single experts are served at {_PATHS} alone")
        return json.dumps(_with_weights(content, asked, alone)).encode()


def _with_weights(
    content: Mapping[str, object], asked: object, alone: Mapping[str, float] | None
) -> dict[str, object]:
    """Return a body with the weights of its `loramix` or of its model as `vllm_xargs`."""
    if alone is not None:
        own = {} if asked is None else asked
        if not isinstance(own, Mapping) or own.get("weights") is not None:
            raise RefusedError(f"'{content['model']}' has weights of its own; set none by hand")
        asked = {**own, "weights": alone}
    given = content.get("vllm_xargs") or {}
    if not isinstance(given, Mapping) or _KEY in given:
        raise RefusedError(f"vllm_xargs: expected an object without '{_KEY}', which has been given")
    extra = {**given, _KEY: json.dumps(asked)}
    return {**{key: each for key, each in content.items() if key != _KEY}, "vllm_xargs": extra}


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _resized(scope: Scope, size: int) -> Scope:
    headers = [each for each in scope["headers"] if each[0] != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(size).encode())]}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first, and then what comes, such as a hang-up."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def __getattr__(name: str) -> type[Translation]:
    """Make the middleware of a served mixture, named as `Served.as_attribute`."""
    globals()[name] = made = type(name, (Translation,), {"served": Served.from_attribute(name)})
    return made
