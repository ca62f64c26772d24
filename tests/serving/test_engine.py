"""The embedded engine answers everyone as the mixture answers each alone."""

import queue
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from architecture_checks import architecture, attention_layers, strengthened
from cases import Case, Experts, over
from hypothesis import given
from hypothesis import strategies as st
from tiny_architectures import tiny_model as tiny_architecture
from torch.nn.functional import pad

from loramix import MixtureModel
from loramix.bases.tiny import tiny_tokenizer
from loramix.data.tokens.answers import end_ids
from loramix.errors import MixtureError
from loramix.mixture.cache import Carried, carry
from loramix.serving import batch, caches
from loramix.serving.engine import Engine
from loramix.serving.jobs import End, Event, Job, Limits, Piece, Sampling, ServingError, TokenScore
from loramix.serving.queue import PATIENCE, Waiting

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

    def alone(self, mixture: MixtureModel) -> tuple[list[int], list[float]]:
        """Return what the mixture generates for this job alone: tokens and log-probabilities."""
        ids = torch.tensor([self.ids])
        given = {} if self.weights is None else {"weights": self.weights}
        output = mixture.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.new,
            do_sample=False,
            eos_token_id=end_ids(mixture.tokenizer, mixture.generation_config, chat=False),
            output_logits=True,
            return_dict_in_generate=True,
            **given,
        )
        start = 1 if mixture.config.is_encoder_decoder else len(self.ids)
        tokens = output.sequences[0, start:].tolist()
        logprobs = [
            float(logits_1V[0].log_softmax(-1)[token])
            for token, logits_1V in zip(tokens, output.logits, strict=True)
        ]
        return tokens, logprobs

    def is_right(self, mixture: MixtureModel) -> bool:
        """Return whether this was answered as alone, log-probabilities within 1e-3."""
        tokens, logprobs = self.alone(mixture)
        if [score.token for score in self.scores] != tokens:
            return False
        return [score.logprob for score in self.scores] == pytest.approx(logprobs, abs=1e-3)


def some(number: int, seed: int, *, by_hand: bool = True) -> list[Asked]:
    """Return jobs of mixed length; by_hand: some bring their own weights."""
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
    return [each for each in asked if not each.is_right(engine.mixture)]


QUICK = [Case("llama", "prompt"), Case("t5", "running")]
FEW = [
    *QUICK,
    Case("llama", "running", "top-k"),
    Case("gpt2", "token", "top-k", "parameter", "block"),
    Case("t5", "prompt", "top-k", base_slot=True),
    Case("llama", "prompt", first_pass=True),
    Case("llama", "prompt", pooling="attention"),
]
ROWS = (1, 4, 16)
ALL = [
    Case(shape, context, activation)
    for shape in ("llama", "gpt2", "t5")
    for context in ("prompt", "running", "token")
    for activation in ("softmax", "top-k")
]


@over(FEW, QUICK)
def test_everyone_is_answered_as_alone(case: Case, experts: Experts, served: Served) -> None:
    engine, asked = served(case.build(experts)), some(7, seed=1)
    arriving(engine, asked, seed=2)
    assert not wrong(engine, asked)


# One number of rows for each case: every context and activation meets all three, over the shapes.
IN_TURN = [(case, ROWS[(place + place // 6) % 3]) for place, case in enumerate(ALL)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rows"), IN_TURN, ids=[f"{each}-{rows}" for each, rows in IN_TURN]
)
def test_two_hundred_at_random_are_answered_as_alone(
    case: Case, rows: int, experts: Experts, served: Served
) -> None:
    engine, asked = served(case.build(experts), rows=rows), some(200, seed=rows)
    arriving(engine, asked, seed=rows + 1)
    assert not wrong(engine, asked)


def unmasked(upper: torch.Tensor, size: tuple[int, ...], **settings: object) -> torch.Tensor:
    return pad(upper, size, value=True)


def decided_by_the_first(cache: object, carried: Carried) -> None:
    first = {group: each[:1].expand_as(each) for group, each in carried.decided.items()}
    carry(cache, replace(carried, decided=first))


FAULTS = {  # what a row would take from the others
    "padding": (batch, "pad", unmasked),
    "places": (batch, "_places", lambda mask_BT: torch.ones_like(mask_BT).cumsum(1) - 1),
    "decisions": (caches, "carry", decided_by_the_first),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=() if name == "decisions" else pytest.mark.slow) for name in FAULTS],
)
def test_a_planted_fault_is_found(
    fault: str, experts: Experts, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of this file see what they are there to see."""
    engine, asked = served(Case("llama", "prompt").build(experts)), some(8, seed=1, by_hand=False)
    monkeypatch.setattr(*FAULTS[fault])
    engine.submit([each.job() for each in asked])  # more than there are places: later ones join
    assert all(isinstance(each.end(), End) for each in asked)
    assert wrong(engine, asked)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
def test_what_the_base_makes_of_logits_is_kept(experts: Experts, served: Served) -> None:
    mixture = Case("llama", "prompt").build(experts)
    mixture.generation_config.repetition_penalty = 1.7
    mixture.generation_config.no_repeat_ngram_size = 2
    mixture.generation_config.min_new_tokens = 4
    engine, asked = served(mixture), some(5, seed=5)
    arriving(engine, asked, seed=6)
    assert not wrong(engine, asked)


SHARES = {  # places by a mask or by columns, windows, states, an encoder's learned places
    **{"bloom": True, "opt": True, "mistral": False, "mamba2": False},
    **{"bart": False, "mt5": True, "qwen3_next": False},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "shares"),
    [
        pytest.param(name, shares, marks=() if name == "bart" else pytest.mark.slow)
        for name, shares in SHARES.items()
    ],
)
def test_rows_share_a_cache_where_that_changes_nothing(
    name: str, shares: bool, tmp_path: Path, served: Served
) -> None:
    base = tiny_architecture(name)
    made = architecture(base, tmp_path, attention_layers(base))
    mixture = strengthened(MixtureModel.from_experts(base, made.experts))
    engine, asked = served(mixture), some(6, seed=3, by_hand=False)
    assert engine._pads is shares
    arriving(engine, asked, seed=4)
    assert not wrong(engine, asked)


def test_the_reference_gate_is_not_served(experts: Experts) -> None:
    with pytest.raises(MixtureError, match="cannot be served"):
        Engine(Case("t5", "reference").build(experts))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 5))
def test_short_prompts_go_first_but_not_for_ever(lengths: list[int], places: int) -> None:
    waiting, limits = Waiting(Limits(prefill_tokens=64)), Limits(prefill_tokens=64)
    long = Job([1] * 60, Sampling(1), print)
    waiting.add([long])
    for _ in range(PATIENCE + 1):
        waiting.add([Job([1] * length, Sampling(1), print) for length in lengths])
        taken = waiting.next(places)
        sizes = [len(job.ids) for job in taken]
        assert 1 <= len(taken) <= places
        assert len(taken) == 1 or max(sizes) * len(sizes) <= limits.prefill_tokens
        if long in taken:
            break
        assert min(sizes) == min(lengths)
    assert long in taken
