"""A running server over a tiny mixture, for tests that ask it over HTTP."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from conftest import strengthen

from loramix import GateConfig, MixtureModel
from loramix.data.tokens.answers import end_ids
from loramix.serving.app import build
from loramix.serving.engine import Engine
from loramix.serving.jobs import Limits

SECONDS = 60.0


@dataclass
class Running:
    """A server, its address, and the mixture behind it."""

    url: str
    engine: Engine
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def mixture(self) -> MixtureModel:
        """What is served."""
        return self.engine.mixture

    def stop(self) -> None:
        """Stop as SIGTERM does, and wait for the end."""
        self.server.should_exit = True
        self.thread.join(SECONDS)

    def alone(self, prompt: str, new: int, **given: object) -> tuple[str, int]:
        """Return what the mixture answers to a prompt by itself, and the number of tokens."""
        inputs = self.mixture.text_inputs(prompt)
        ends = end_ids(self.mixture.tokenizer, self.mixture.generation_config, chat=False)
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": ends}
        tokens = self.mixture.generate(**inputs, **settings, **given)
        ids = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        return self.mixture.tokenizer.decode(ids, skip_special_tokens=True), len(ids)

    def idle(self) -> bool:
        """Wait until nothing generates or waits; return whether that came about."""
        return until(lambda: not self.engine.rows and not self.engine.waiting)


def until(holds: Callable[[], bool]) -> bool:
    """Wait until something holds; return whether it came about."""
    end = time.monotonic() + SECONDS
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def tiny_mixture(make_adapter: Callable[..., Path], context: str = "prompt") -> MixtureModel:
    """Return a mixture of two experts on tiny-llama, with gates that tell prompts apart."""
    experts = {name: make_adapter(name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    gate = GateConfig(context=context)
    return strengthen(MixtureModel.from_experts("tiny-llama", experts, gate=gate))


@contextmanager
def running(
    mixture: MixtureModel, *, api_key: str | None = None, **limits: float
) -> Iterator[Running]:
    """Serve a mixture at a free port inside the block."""
    engine = Engine(mixture, Limits(**{"drain_seconds": 10, **limits})).start()
    app = build(engine, "tiny", api_key=api_key, hosts=["localhost", "127.0.0.1"])
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    served = Running(f"http://127.0.0.1:{port}", engine, server, thread)
    try:
        yield served
    finally:
        served.stop()
