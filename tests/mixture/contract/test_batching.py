"""transformers' continuous batching answers every request as `MixtureModel.generate` does alone."""

import random

import pytest
import torch
from cases import Case, Experts
from conftest import tokens
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import RequestState

from loramix import MixtureModel
from loramix.errors import MixtureError
from loramix.mixture import batching
from loramix.mixture.state import recording

NEW = 10
ALONE: dict[Case, list[list[int]]] = {}  # the right answers, made once


def settings(new: int = NEW, **more: object) -> dict[str, object]:
    given = {"page_size": 8, "num_blocks": 20, "max_batch_tokens": 64, "seed": 0}
    given |= {"allow_block_sharing": False, **more}
    greedy = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1)
    config = ContinuousBatchingConfig(**given)
    return {"generation_config": greedy, "continuous_batching_config": config, "warmup": False}


def prompts(number: int = 6) -> list[list[int]]:
    draw = random.Random(0)
    lengths = [draw.choice((1, 3, 9, 20, 41)) for _ in range(number)]
    return [[draw.randrange(3, 60) for _ in range(length)] for length in lengths]


def differences(case: Case, experts: Experts) -> int:
    """Return how many requests are answered otherwise than alone, or not at all."""
    mixture, asked = case.build(experts), prompts()
    answers = list(mixture.base.generate_batch(asked, **settings()).values())
    assert len(answers) == len(asked)
    if case not in ALONE:
        ALONE[case] = [alone(mixture, prompt) for prompt in asked]
    pairs = zip(answers, ALONE[case], strict=True)
    return sum(one.generated_tokens != other for one, other in pairs)


def alone(mixture: MixtureModel, prompt: list[int], new: int = NEW) -> list[int]:
    ids = torch.tensor([prompt])
    given = {"attention_mask": torch.ones_like(ids), "eos_token_id": None}
    found = mixture.generate(input_ids=ids, max_new_tokens=new, do_sample=False, **given)
    return found[0, len(prompt) :].tolist()


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of requests that have lost their caches."""
    found, own = list[str](), RequestState.create_equivalent_initial_request

    def noted(state: RequestState) -> RequestState:
        found.append(state.request_id)
        return own(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", noted)
    return found


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", "prompt"),
        Case("llama", "prompt", first_pass=True),
        Case("llama", "prompt", pooling="attention"),
        Case("llama", "running", "top-k"),
        Case("llama", "token"),
        pytest.param(Case("gpt2", "prompt", scope="block", carry=True), marks=pytest.mark.slow),
        pytest.param(
            Case("gpt2", "prompt", "top-k", "parameter", "block", base_slot=True, first_pass=True),
            marks=pytest.mark.slow,
        ),
        pytest.param(Case("gpt2", "running", scope="model"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_requests_are_answered_as_alone(case: Case, experts: Experts, resumed: list[str]) -> None:
    assert differences(case, experts) == 0
    assert resumed


def test_an_average_over_a_resumed_answer_would_be_seen(
    experts: Experts, resumed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "own_prompt", lambda state: len(state.initial_tokens))
    assert differences(Case("llama", "prompt"), experts) > 0
    assert resumed


@pytest.mark.parametrize("first_pass", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_request_begins_while_a_long_one_is_read_again_in_parts(
    first_pass: bool, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, own = list[batching.Pass](), batching.Requests.next_pass

    def noted(requests: batching.Requests) -> batching.Pass:
        passes.append(own(requests))
        return passes[-1]

    monkeypatch.setattr(batching.Requests, "next_pass", noted)
    mixture = Case("llama", "prompt", first_pass=first_pass).build(experts)
    draw = random.Random(0)
    asked = [[draw.randrange(3, 60) for _ in range(draw.choice((20, 41, 44)))] for _ in range(8)]
    answers = mixture.base.generate_batch(asked, **settings(30, max_batch_tokens=48)).values()
    assert any(row.end - row.start > 1 and not row.begins for each in passes for row in each.rows)
    assert [each.generated_tokens for each in answers] == [
        alone(mixture, prompt, 30) for prompt in asked
    ]


@pytest.mark.slow
def test_prompts_in_parts_would_be_seen(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "whole_prompts", lambda kind: kind)
    monkeypatch.setattr(batching, "prompts_in_parts", lambda now: False)
    assert differences(Case("llama", "prompt"), experts) > 0


@pytest.mark.slow
def test_a_sum_that_goes_on_from_another_request_would_be_seen(
    experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching.SlotNumbers, "__getitem__", lambda slots, name: 0)
    assert differences(Case("llama", "running", "top-k"), experts) > 0


def test_a_prompt_that_can_never_be_read_at_once_fails_alone(experts: Experts) -> None:
    mixture, asked = Case("llama", "prompt").build(experts), [[5] * 65, [5, 6, 7], [9] * 64]
    long, *others = mixture.base.generate_batch(asked, **settings()).values()
    assert "raise max_batch_tokens" in long.error
    assert [each.error for each in others] == [None, None]


@pytest.mark.parametrize("context", ["prompt", "running"])
def test_what_such_gates_cannot_follow_is_refused_by_name(context: str, experts: Experts) -> None:
    base = Case("llama", context).build(experts).base
    for more, told in (
        ({"allow_block_sharing": True}, "block sharing"),
        ({"use_async_batching": True}, "prepared ahead"),
        ({"use_cuda_graph": (False, True)}, "CUDA graphs"),
        ({"default_compile_level": 1}, "compilation"),
        ({"cpu_offload_space": None}, "on the host"),
        ({"scheduler_type": "newest"}, "scheduler 'newest'"),
    ):
        with pytest.raises(MixtureError, match=told):
            base.generate_batch([[5, 6]], **settings(**more))
        with (
            pytest.raises(MixtureError, match=told),
            base.continuous_batching_context_manager(**settings(**more)),
        ):
            pass
    several = GenerationConfig(num_return_sequences=2, eos_token_id=-1, do_sample=True)
    with pytest.raises(MixtureError, match="forks"):
        base.generate_batch([[5, 6]], generation_config=several)
    with pytest.raises(MixtureError, match="without telling whose"):
        base(input_ids=tokens(1, 4), read_index=[torch.zeros(1)])


@pytest.mark.parametrize("context", ["prompt", "token"])
def test_blocks_that_do_not_reach_its_thread_are_refused(context: str, experts: Experts) -> None:
    mixture = Case("llama", context).build(experts)
    for block in (
        mixture.fixed({"a": 1.0}),
        mixture.holding([None, {"a": 1.0}]),
        mixture.reading(torch.tensor([1])),
        recording(),
    ):
        with block, pytest.raises(MixtureError, match="thread of its own"):
            mixture.base.generate_batch([[5, 6]], **settings())


def test_gates_of_whole_targets_and_earlier_managers_are_refused(experts: Experts) -> None:
    mixture = Case("llama", "reference").build(experts)
    with pytest.raises(MixtureError, match="whole targets"):
        mixture.base.generate_batch([[5, 6]], **settings())
    base = Case("llama", "running").build(experts).base
    base._cached_continuous_batching_manager = type(base).init_continuous_batching(
        base, **{name: each for name, each in settings().items() if name != "warmup"}
    )
    with pytest.raises(MixtureError, match="from before"):
        base.generate_batch([[5, 6]], **settings())
