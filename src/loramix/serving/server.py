"""From a mixture to a running server."""

import uvicorn

from loramix.mixture.model import MixtureModel
from loramix.serving.app import build
from loramix.serving.engine import Engine
from loramix.serving.hosts import is_loopback
from loramix.serving.jobs import Limits

LOOPBACK = "127.0.0.1"


def serve(
    mixture: MixtureModel,
    name: str,
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve a mixture until SIGTERM or SIGINT; answers that run then may come to their end."""
    engine = Engine(mixture, limits).start()
    app = build(engine, name, api_key=api_key, hosts=_hosts(host))
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=engine.limits.drain_seconds,
    )


def _hosts(host: str) -> list[str]:
    """Return the names under which the server may be called."""
    return ["localhost", "127.0.0.1", "[::1]", "[", host] if is_loopback(host) else ["*"]
