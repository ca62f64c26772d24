"""The embedded engine answers everyone as the mixture answers each alone."""

import queue
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from cases import Case, Experts

from loramix import MixtureModel
from loramix.bases.tiny import tiny_tokenizer
from loramix.data.tokens.answers import end_ids
from loramix.serving.engine import Engine
from loramix.serving.jobs import End, Event, Job, Limits, Piece, Sampling, ServingError, TokenScore

SECONDS = 60.0
Served = Callable[..., Engine]


@dataclass
class Asked:
    """A job, and all that has been told of it."""

    ids: list[int]
    new: int
    weights: Mapping[str, float] | None = None
    told: "queue.Queue[Event]" = field(default_factory=queue.Queue)
    scores: list[TokenScore] = field(default_factory=list)

    def job(self, **sampling: object) -> Job:
        settings = {"temperature": 0.0, "logprobs": 2, **sampling}
        return Job(self.ids, Sampling(self.new, **settings), self.told.put, weights=self.weights)

    def end(self) -> End | ServingError:
        """Return the end of the answer; `scores` then has all of its tokens."""
        while True:
            event = self.told.get(timeout=SECONDS)
            if not isinstance(event, Piece):
                return event
            self.scores += event.scores

    def alone(self, mixture: MixtureModel) -> list[int]:
        """Return the tokens that the mixture generates for this job alone."""
        ids = torch.tensor([self.ids])
        given = {} if self.weights is None else {"weights": self.weights}
        tokens = mixture.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.new,
            do_sample=False,
            eos_token_id=end_ids(mixture.tokenizer, mixture.generation_config, chat=False),
            **given,
        )
        start = 1 if mixture.config.is_encoder_decoder else len(self.ids)
        return tokens[0, start:].tolist()


def some(number: int, seed: int, *, by_hand: bool = True) -> list[Asked]:
    """Return jobs of mixed length; some bring their own weights."""
    draw = random.Random(seed)
    weights = [None, None, {"a": 1.0}, {}, {"a": 0.3, "c": 0.6}] if by_hand else [None]
    return [
        Asked(
            [draw.randrange(3, 97) for _ in range(draw.choice([1, 2, 3, 5, 9, 17]))],
            draw.randrange(1, 9),
            draw.choice(weights),
        )
        for _ in range(number)
    ]


@pytest.fixture
def served() -> Served:
    """Return a function that starts an engine, which is stopped after the test."""
    engines: list[Engine] = []

    def start(mixture: MixtureModel, **limits: object) -> Engine:
        if "tokenizer" not in vars(mixture):
            mixture.tokenizer = tiny_tokenizer("tiny-llama")
        engines.append(Engine(mixture, Limits(**{"rows": 4, **limits})).start())
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop(timeout=SECONDS)


def arriving(engine: Engine, asked: list[Asked], seed: int) -> None:
    """Submit jobs at random between the engine's passes, and wait for all."""
    draw, left = random.Random(seed), list(asked)
    while left:
        several = [left.pop() for _ in range(min(len(left), draw.choice([1, 1, 2, 5])))]
        engine.submit([each.job() for each in several])
        for _ in range(draw.randrange(3)):
            engine.call(lambda: None).result(SECONDS)  # one more pass has gone by
    for each in asked:
        assert isinstance(each.end(), End)


def wrong(engine: Engine, asked: list[Asked]) -> list[Asked]:
    """Return those that were answered otherwise than alone."""
    return [
        each
        for each in asked
        if [score.token for score in each.scores] != each.alone(engine.mixture)
    ]


CASES = [
    Case("llama", "prompt"),
    Case("llama", "prompt", "top-k"),
    Case("llama", "running", "softmax"),
    Case("gpt2", "token", "top-k"),
    Case("gpt2", "prompt", "softmax", "parameter"),
    Case("t5", "prompt", "softmax"),
    Case("t5", "running", "top-k"),
    Case("t5", "token", "softmax"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everyone_is_answered_as_alone(case: Case, experts: Experts, served: Served) -> None:
    engine, asked = served(case.build(experts)), some(12, seed=1)
    arriving(engine, asked, seed=2)
    assert not wrong(engine, asked)
