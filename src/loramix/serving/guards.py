"""What a request must pass before it is read: its host, its size and its key."""

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loramix.serving.answers import error_body
from loramix.serving.jobs import ServingError

OPEN_PATHS = ("/", "/health")  # neither tells anything of the model


class Guard:
    """Refuses requests without the key, above the size limit, and posts that are not JSON.

    A page of another origin cannot post JSON to this server without asking it first, which it never
    allows.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, body_bytes: int) -> None:
        self._app, self._body_bytes = app, body_bytes
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], scope["method"], headers)
        if refusal is None:
            await self._app(scope, self._counted(receive), send)
        else:
            await refused(refusal)(scope, receive, send)

    def _refusal(self, path: str, method: str, headers: Mapping[str, str]) -> ServingError | None:
        if self._key is not None and path not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("latin-1"), self._key):  # bytes, as they came
                text = "a key is needed: send it as 'Authorization: Bearer KEY'"
                return ServingError(text, status=401, code="invalid_api_key")
        if method != "POST":
            return None
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return ServingError("the body must be of type application/json", status=415)
        length = headers.get("content-length", "0")
        return self._too_large() if int(length) > self._body_bytes else None

    def _counted(self, receive: Receive) -> Receive:
        """Return a `receive` that raises HTTPException for a longer body than its header says."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._body_bytes:
                raise HTTPException(413, str(self._too_large()))  # FastAPI hides any other
            return message

        return counted

    def _too_large(self) -> ServingError:
        text = f"the body is larger than {self._body_bytes} bytes, the limit of this server"
        return ServingError(text, status=413, code="body_too_large")


def refused(error: ServingError) -> JSONResponse:
    """Return the response that tells an error."""
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)
