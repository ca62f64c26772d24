"""Attention pooling, and the queries that it learns from prompts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, tiny_model, tokens

from loramix import GateConfig, MixtureModel
from loramix.mixture import queries
from loramix.mixture.gate import ContextGate
from loramix.mixture.pooling import AttentionPooling, unit_scale
from loramix.mixture.prototypes import add_expert, from_examples, start_steps
from loramix.mixture.queries import _Tokens, held_prompts, learn_query

Experts = Callable[..., dict[str, Path]]
WIDTH = 12


def pooling(query: torch.Tensor | None = None) -> AttentionPooling:
    made = AttentionPooling(WIDTH)
    if query is not None:
        made.query.data.copy_(query)
    return made


def all_tokens(hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(hidden), 1, hidden.shape[1], dtype=torch.bool)


def test_a_query_of_zero_attends_to_all_tokens_alike() -> None:
    hidden = torch.randn(2, 5, WIDTH)
    mean = unit_scale(hidden).mean(1)
    wanted = unit_scale(2 * unit_scale(mean) + unit_scale(hidden[:, -1]))
    close(pooling()(hidden, all_tokens(hidden))[:, 0], wanted)


def test_a_strong_query_attends_to_the_token_like_it() -> None:
    hidden = torch.randn(1, 5, WIDTH)
    found = pooling(100 * hidden[0, 2])(hidden, all_tokens(hidden))[0, 0]
    token = unit_scale(hidden[0])
    close(found, unit_scale(token[2] + token[-1] + unit_scale(token.mean(0))))


def test_tokens_outside_a_sample_do_not_count() -> None:
    pool, hidden = pooling(torch.randn(WIDTH)), torch.randn(1, 9, WIDTH)
    member = torch.zeros(1, 3, 9, dtype=torch.bool)
    member[0, 0, 1:4] = True
    member[0, 1, [4, 6, 7]] = True  # the third sample has no tokens
    found = pool(hidden, member)[0]
    for sample, places in ((0, [1, 2, 3]), (1, [4, 6, 7])):
        alone = hidden[:, places]
        close(found[sample], pool(alone, all_tokens(alone))[0, 0])
    assert not found[2].any()


@torch.no_grad()
def test_of_long_texts_a_learned_query_finds_the_words_that_ask() -> None:
    torch.manual_seed(0)
    width = 64
    asking = torch.randn(2, 1, width)

    def prompts() -> list[list[torch.Tensor]]:  # one word asks, thirty are about anything
        texts = [[torch.randn(30, width) for _ in range(32)] for _ in asking]
        return [
            [unit_scale(torch.cat([ask, text])) for text in own]
            for ask, own in zip(asking, texts, strict=True)
        ]

    known, others = prompts(), prompts()

    def right(query: torch.Tensor) -> float:
        """Return how many of the others are nearest to the mean of their own kind."""
        means = _Tokens(known).attended(query).reshape(2, 32, width).mean(1)
        nearest = torch.cdist(_Tokens(others).attended(query), means).argmin(1)
        return float((nearest == torch.arange(2).repeat_interleave(32)).float().mean())

    assert right(learn_query(known)) > 0.95
    assert right(torch.zeros(width)) < 0.9


@pytest.mark.axes(True)  # how many widths are read depends on the case
@pytest.mark.parametrize("shape", ["llama", "t5"])
@pytest.mark.parametrize("scope", ["layer", "block"])
def test_gates_learn_their_queries_from_examples(shape: str, scope: str, experts: Experts) -> None:
    gate = GateConfig(pooling="attention", scope=scope)
    mixture = MixtureModel.from_experts(tiny_model(shape), experts(shape), gate=gate)
    examples = {name: [{"input_ids": tokens(8, 6)}] for name in mixture.expert_names}
    from_examples(mixture, examples)
    assert all(bool(each.pooling.query.any()) for each in mixture.gates.values())


def test_of_a_single_prompt_no_query_is_learned(experts: Experts) -> None:
    gate = GateConfig(pooling="attention")
    mixture = MixtureModel.from_experts(tiny_model("llama"), experts("llama"), gate=gate)
    few = {name: [{"input_ids": tokens(8, 6)}] for name in mixture.expert_names}
    few[mixture.expert_names[0]] = [{"input_ids": tokens(1, 6)}]
    from_examples(mixture, few)
    assert not any(bool(each.pooling.query.any()) for each in mixture.gates.values())
    for weights in mixture.weights(input_ids=tokens(2, 5)).values():
        assert bool(weights.isfinite().all())


def test_queries_are_the_same_however_many_gates_have_room(
    experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    examples = {name: [{"input_ids": tokens(8, 6)}] for name in ("a", "b")}
    for room in (2**30, 1):
        monkeypatch.setattr(queries, "KEPT_BYTES", room)
        gate = GateConfig(pooling="attention")
        mixture = MixtureModel.from_experts(tiny_model("llama"), experts("llama"), gate=gate)
        from_examples(mixture, dict.fromkeys(mixture.expert_names, examples["a"]))
        found.append([each.pooling.query for each in mixture.gates.values()])
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.mark.parametrize(("prompts", "room"), [(8, 2**30), (8, 1), (1, 2**30)])
def test_every_step_of_the_start_is_counted(
    prompts: int, room: int, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "KEPT_BYTES", room)
    gate = GateConfig(pooling="attention")
    mixture = MixtureModel.from_experts(tiny_model("llama"), experts("llama"), gate=gate)
    examples = {name: [{"input_ids": tokens(prompts, 6)}] for name in mixture.expert_names}
    steps: list[None] = []
    from_examples(mixture, examples, each=lambda: steps.append(None))
    assert len(steps) == start_steps(mixture, examples)


def test_queries_are_saved_and_stay_when_an_expert_joins(experts: Experts, tmp_path: Path) -> None:
    gate = GateConfig(pooling="attention", first_pass=True)
    paths = experts("llama", ("a", "b", "c"))
    two = {name: paths[name] for name in ("a", "b")}
    mixture = MixtureModel.from_experts(tiny_model("llama"), two, gate=gate)
    from_examples(mixture, {name: [{"input_ids": tokens(8, 6)}] for name in two})
    queries_before = [each.pooling.query.clone() for each in mixture.gates.values()]
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    ids = tokens(2, 5)
    for layer, weights in mixture.weights(input_ids=ids).items():
        close(again.weights(input_ids=ids)[layer], weights)
    add_expert(again, "c", paths["c"], [{"input_ids": tokens(8, 6)}])
    for before, after in zip(queries_before, again.gates.values(), strict=True):
        close(after.pooling.query, before)


@pytest.mark.parametrize("context", ["running", "token", "reference"])
def test_gates_with_a_context_for_every_token_pool_none(context: str) -> None:
    gate = ContextGate(WIDTH, 2, GateConfig(context=context, pooling="attention"))
    assert gate.pooling is None


@pytest.mark.parametrize(("experts_", "held"), [(2, 48), (20, 12), (1000, 4)])
def test_fewer_prompts_of_each_are_held_of_many_experts(experts_: int, held: int) -> None:
    assert held_prompts(experts_) == held
