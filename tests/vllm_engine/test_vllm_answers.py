"""vLLM answers as `MixtureModel.generate` does, and two planted faults are seen."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")
from vllm_bases import save_mixture
from vllm_running import BLOCK, answer, counted, differences, drawn, preemptions, started

from loramix.serving.vllm import deciding, refusals, scheduling
from loramix.serving.vllm.passes import Pass

CLOSE = 1e-3  # of log-probabilities
CASES = {
    "prompt": ("llama", {"context": "prompt"}),
    "prompt-top-k": ("llama", {"context": "prompt", "activation": "top-k"}),
    "running": ("llama", {"context": "running"}),
    "running-top-k": ("qwen3", {"context": "running", "activation": "top-k", "scope": "block"}),
    "token": ("llama", {"context": "token"}),
    "token-top-k": ("gpt2", {"context": "token", "activation": "top-k"}),
    "prompt-carry": ("llama", {"context": "prompt", "carry": True, "mixing": "parameter"}),
    "first-pass": ("llama", {"context": "prompt", "first_pass": True}),
    "attention": ("llama", {"pooling": "attention"}),
    "first-pass-block": (
        "gpt2",
        {
            "first_pass": True,
            "pooling": "attention",
            "activation": "top-k",
            "scope": "block",
            "base_slot": True,
            "mixing": "parameter",
        },
    ),
    "token-model": ("qwen3", {"context": "token", "scope": "model", "base_slot": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_generate_whoever_else_is_answered(case: str, tmp_path: Path) -> None:
    kind, gate = CASES[case]
    mixture = save_mixture(tmp_path, kind, **gate)
    asked = drawn(24)
    with started(tmp_path / "mixture") as llm:
        answer(llm, asked)
        assert preemptions(llm) > 0
    wrong, worst = differences(mixture, asked)
    assert wrong == 0
    assert worst < CLOSE


@pytest.mark.parametrize("case", ["prompt", "first-pass", "running-top-k", "token"])
def test_compiled_answers_are_those_of_generate(case: str, tmp_path: Path) -> None:
    kind, gate = CASES[case]
    mixture = save_mixture(tmp_path, kind, **gate)
    asked = drawn(16, seed=1)
    with started(tmp_path / "mixture", eager=False) as llm:
        answer(llm, asked, at_once=4)
    wrong, worst = differences(mixture, asked)
    assert wrong == 0
    assert worst < CLOSE


@pytest.mark.parametrize("salted", [True, False])
def test_prefixes_are_shared_at_equal_weights_alone(
    salted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not salted:  # the planted fault
        monkeypatch.setattr(
            scheduling.Scheduler, "add_request", scheduling.OwnScheduler.add_request
        )
    mixture = save_mixture(tmp_path, context="token", scope="block", carry=True)
    asked = drawn(16, seed=4)
    prefix = [(7 * place) % 250 + 3 for place in range(2 * BLOCK)]
    for number, each in enumerate(asked):
        each.prompt = prefix + each.prompt[:20]
        each.weights = (None, {"a": 1.0}, {"b": -1.0}, {})[number % 4]
    caching = {"enable_prefix_caching": True, "scheduler_cls": refusals.SCHEDULER}
    with started(tmp_path / "mixture", **caching) as llm:
        answer(llm, asked)
        assert counted(llm, "vllm:prefix_cache_hits") > 2 * BLOCK
    wrong, worst = differences(mixture, asked)
    assert (wrong == 0) == salted
    assert worst < CLOSE or not salted


def test_long_prompts_in_parts_keep_token_and_running_gates_right(tmp_path: Path) -> None:
    mixture = save_mixture(tmp_path, context="running")
    asked = drawn(16, seed=2)
    with started(tmp_path / "mixture", max_num_batched_tokens=24) as llm:
        answer(llm, asked)
    assert differences(mixture, asked)[0] == 0


@pytest.mark.parametrize(
    ("kind", "gate"),
    [
        ("llama", {"context": "prompt"}),
        ("llama", {"first_pass": True}),
        ("one-key", {"context": "running"}),
    ],
)
def test_two_processes_share_the_outputs_of_every_expert(
    kind: str, gate: dict, tmp_path: Path
) -> None:
    mixture = save_mixture(tmp_path, kind, **gate)
    asked = drawn(12, seed=3)
    with started(tmp_path / "mixture", tensor_parallel_size=2) as llm:
        answer(llm, asked)
    wrong, worst = differences(mixture, asked)
    assert wrong == 0
    assert worst < CLOSE


def test_the_average_over_a_resumed_answer_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole_text(now: Pass) -> list:
        return [
            type(row)(row.slot, row.start, row.end, row.begins, row.end - row.start, row.weights_E)
            for row in now.beginning
        ]

    monkeypatch.setattr(deciding, "_whole", whole_text)
    mixture = save_mixture(tmp_path, context="prompt")
    asked = drawn(24)
    with started(tmp_path / "mixture") as llm:
        answer(llm, asked)
    assert differences(mixture, asked)[0] > 0


def test_prompts_in_parts_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"enable_chunked_prefill": True, "max_num_batched_tokens": 24}
    mixture = save_mixture(tmp_path, context="prompt")
    with pytest.raises(Exception, match="chunked prefill"), started(tmp_path / "mixture", **parts):
        pass
    monkeypatch.setattr(refusals, "_of_gates", lambda config, gate: ())
    monkeypatch.setattr(deciding, "_whole", lambda now: now.beginning)
    asked = drawn(16, seed=2)
    with started(tmp_path / "mixture", **parts) as llm:
        answer(llm, asked)
    assert differences(mixture, asked)[0] > 0
