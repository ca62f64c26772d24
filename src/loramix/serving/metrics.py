"""What a server counts, in Prometheus' form."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loramix.serving.engine import Engine
from loramix.serving.jobs import End

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server; used in the server's thread alone."""

    def __init__(self, engine: Engine) -> None:
        self._experts = engine.mixture.expert_names
        self.registry = registry = CollectorRegistry()
        self._answers = Counter(
            "loramix_answers", "Answers by how they ended", ["reason"], registry=registry
        )
        self._prompt = Counter("loramix_prompt_tokens", "Tokens of prompts", registry=registry)
        self._new = Counter("loramix_generated_tokens", "Tokens generated", registry=registry)
        self._weights = Counter(
            "loramix_expert_weight",
            "Sum of the experts' mean weights over answers",
            ["expert"],
            registry=registry,
        )
        self._first = Histogram(
            "loramix_first_token_seconds",
            "From arrival to the first text of an answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "loramix_answer_seconds",
            "From arrival to the end of an answer",
            buckets=_SECONDS,
            registry=registry,
        )
        running = Gauge("loramix_rows_running", "Rows that generate", registry=registry)
        running.set_function(lambda: engine.rows)
        waiting = Gauge("loramix_rows_waiting", "Rows that wait for a place", registry=registry)
        waiting.set_function(lambda: engine.waiting)

    def page(self) -> bytes:
        """Return all counters as Prometheus reads them."""
        return generate_latest(self.registry)

    def began(self, arrived: float) -> None:
        """Count the first text of an answer."""
        self._first.observe(time.monotonic() - arrived)

    def ended(self, arrived: float, prompt_tokens: int, end: End) -> None:
        """Count a whole answer."""
        self._answers.labels(end.reason).inc()
        self._prompt.inc(prompt_tokens)
        self._new.inc(end.new_tokens)
        self._whole.observe(time.monotonic() - arrived)
        for expert, weight in zip(self._experts, end.means(), strict=True):
            self._weights.labels(expert).inc(max(0.0, weight))  # by hand it may be negative

    def failed(self, reason: str) -> None:
        """Count an answer that did not come to its end."""
        self._answers.labels(reason).inc()
