"""The HTTP server: OpenAI's API over one engine, and the playground."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from loramix.mixture.explanation import Explanation, explain
from loramix.serving.answers import Choice, Json, Kind, Writer, error_body
from loramix.serving.asking import Asking, Models, Prompt
from loramix.serving.bodies import ChatBody, CompletionBody, RoutingBody
from loramix.serving.engine import Engine
from loramix.serving.exchange import ClientGoneError, Exchange
from loramix.serving.guards import Guard, refused
from loramix.serving.jobs import End, Piece, ServingError
from loramix.serving.metrics import Metrics
from loramix.serving.playground import SECURITY, page

_CLIENT_CLOSED = 499  # nginx's, for logs: nobody receives it


class Service:
    """What the routes share: the engine, and all that turns bodies into answers."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.models = engine, Models(name, engine.mixture.expert_names)
        self.asking = Asking(engine.mixture, self.models, engine.limits)
        self.metrics = Metrics(engine)

    async def answer(
        self, request: Request, body: ChatBody | CompletionBody, prompts: Sequence[Prompt]
    ) -> Response:
        """Return the answers to prompts, `n` to each, whole or as a stream."""
        weights = self.asking.weights(body)
        wanted = []
        for prompt in prompts:
            sampling = self.asking.sampling(body, prompt)
            wanted += [(prompt, sampling.numbered(index)) for index in range(body.n or 1)]
        exchange = Exchange(wanted, weights, metrics=self.metrics)
        exchange.submit(self.engine)
        kind: Kind = "chat" if isinstance(body, ChatBody) else "completion"
        experts = self.engine.mixture.expert_names
        layers = body.loramix.layers
        writer = Writer(kind, body.model, experts, self.asking.token_text, layers=layers)
        counted = sum(len(prompt.ids) for prompt in prompts)
        if not body.stream:
            return JSONResponse(await _whole(request, exchange, writer, counted))
        told = body.stream_options is not None and body.stream_options.include_usage
        lines = _lines(request, exchange, writer, counted if told else None)
        return StreamingResponse(lines, media_type="text/event-stream")

    async def routing(self, body: RoutingBody) -> Explanation:
        """Return the weights for a prompt, without an answer."""
        self.models.weights(body.model or self.models.name, None)
        if body.messages is not None:
            text = self.asking.conversation(body.messages)
        else:
            text = body.prompt or ""
        self.asking.explained(text, body.task)
        mixture = self.engine.mixture
        future = self.engine.call(lambda: explain(mixture, text, task=body.task))
        return await asyncio.wrap_future(future)


def build(
    engine: Engine, name: str, *, api_key: str | None = None, hosts: Sequence[str] = ("*",)
) -> FastAPI:
    """Return the server of a started engine, which is stopped when the server ends.

    hosts: the names under which it may be called; others are refused, so that no page can reach a
    server on this machine by a name of its own.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()

    app = FastAPI(title="loramix", lifespan=lifespan, docs_url=None, redoc_url=None)
    service = Service(engine, name)
    _add_routes(app, service)
    _add_errors(app)
    app.add_middleware(Guard, api_key=api_key, body_bytes=engine.limits.body_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request, body: ChatBody) -> Response:
        return await service.answer(request, body, [service.asking.chat_prompt(body)])

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await service.answer(request, body, service.asking.completion_prompts(body))

    @app.post("/v1/routing", response_model=None)
    async def routing(body: RoutingBody) -> Mapping[str, object]:
        return {"object": "routing", **asdict(await service.routing(body))}

    @app.get("/v1/models")
    async def models() -> Json:
        listed = [_listed(each) for each in service.models.names]
        told = {"experts": service.engine.mixture.expert_names, "chat": service.asking.chats}
        return {"object": "list", "data": [{**listed[0], "loramix": told}, *listed[1:]]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        service.models.weights(name, None)
        return _listed(name)

    @app.get("/health", response_model=None)
    async def health() -> Response:
        alive = service.engine.alive
        status = "ok" if alive else "stopping"
        return JSONResponse({"status": status}, status_code=200 if alive else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_model=None)
    async def playground() -> Response:
        return HTMLResponse(page(), headers=SECURITY)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ServingError)
    async def refusal(request: Request, error: ServingError) -> Response:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or None
        text = first["msg"].removeprefix("Value error, ")
        return refused(ServingError(f"{place}: {text}" if place else text, param=place))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return refused(ServingError(str(error.detail), status=error.status_code))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refused(ServingError("the server failed", status=500, code="internal_error"))

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=_CLIENT_CLOSED)


def _listed(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "loramix"}


async def _whole(request: Request, exchange: Exchange, writer: Writer, prompt_tokens: int) -> Json:
    choices = [Choice() for _ in exchange.jobs]
    async for index, event in exchange.follow(request):
        if isinstance(event, Piece):
            choices[index].add(event)
        else:
            choices[index].end = event
    return writer.whole(choices, prompt_tokens)


async def _lines(
    request: Request, exchange: Exchange, writer: Writer, prompt_tokens: int | None
) -> AsyncIterator[str]:
    """Yield the lines of a stream; prompt_tokens: None leaves out the usage."""
    lengths, ends = [0] * len(exchange.jobs), list[End]()
    for index in range(len(exchange.jobs)):
        if chunk := writer.first(index):
            yield _line(chunk)
    try:
        async for index, event in exchange.follow(request):
            if isinstance(event, End):
                ends.append(event)
                yield _line(writer.last(index, event))
            else:
                yield _line(writer.part(index, event, lengths[index]))
                lengths[index] += len(event.text)
    except ServingError as error:
        yield _line(error_body(error))
        return
    except ClientGoneError:
        return
    if prompt_tokens is not None:
        yield _line(writer.counted(prompt_tokens, ends))
    yield "data: [DONE]\n\n"


def _line(body: Mapping[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
