"""Gates fitted to examples, and the verdict on them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close

import loramix
from loramix import GateConfig, MixtureModel
from loramix.assembly import refinement
from loramix.assembly.verdict import ExpertVerdict, Losses, judge, warnings
from loramix.errors import DataError
from loramix.experiment.paired import Difference
from loramix.mixture.prototypes import SOFT

WORDS = {"a": "rain moon snow", "b": "SELECT id FROM table"}


@pytest.fixture
def mixture(make_adapter: Callable[..., Path]) -> MixtureModel:
    folders = {name: make_adapter(name, seed=ord(name)) for name in WORDS}
    return MixtureModel.from_experts("tiny-llama", folders).eval()


def prompts(name: str, count: int) -> list[str]:
    return [f"{WORDS[name]} {number} {WORDS[name]}" for number in range(count)]


def answered(name: str, count: int) -> list[tuple[str, str]]:
    return [(prompt, f"{name * 3} {number}") for number, prompt in enumerate(prompts(name, count))]


def test_prompts_alone_are_enough_and_a_part_is_held_out(mixture: MixtureModel) -> None:
    before = {
        key: tensor.clone()
        for key, tensor in mixture.base.state_dict().items()
        if "gate" not in key
    }
    fit = loramix.fit(mixture, {name: prompts(name, 8) for name in WORDS})
    assert fit.depth == "prompts"
    assert {name: len(each.pairs) for name, each in fit.held_out.items()} == {"a": 2, "b": 2}
    verdicts = judge(mixture, fit.held_out)
    assert all(each.weights[each.expert] > 0.8 for each in verdicts), verdicts
    assert warnings(verdicts) == []
    for key, tensor in before.items():
        close(mixture.base.state_dict()[key], tensor)


@pytest.mark.usefixtures("few_neutral_texts")
def test_nothing_at_all_is_enough_for_routing(mixture: MixtureModel) -> None:
    fit = loramix.fit(mixture, {})
    assert (fit.depth, fit.held_out) == ("nothing", {})
    weights = mixture.weights(**mixture.text_inputs("rain"))
    assert any(not torch.allclose(each, each.mean(1, keepdim=True)) for each in weights.values())


def test_more_experts_than_hidden_units_widen_the_gates(make_adapter: Callable[..., Path]) -> None:
    folders = {name: make_adapter(name, seed=ord(name)) for name in WORDS}
    mixture = MixtureModel.from_experts("tiny-llama", folders, gate=GateConfig(hidden=1))
    loramix.fit(mixture, {name: prompts(name, 4) for name in WORDS})
    assert mixture.gate_config.hidden == 2


@pytest.mark.parametrize("rate", [1e-3, 10.0])
def test_training_never_loses_to_its_start(
    mixture: MixtureModel, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = refinement.SPEC.model_copy(update={"learning_rate": rate})
    monkeypatch.setattr(refinement, "SPEC", spec)
    examples = {name: answered(name, 8) for name in WORDS}
    untrained = loramix.fit(mixture, examples)
    start = {key: tensor.clone() for key, tensor in mixture.gate_state().items()}
    losses = {each.expert: each.losses.mixture for each in judge(mixture, untrained.held_out)}
    fit = loramix.fit(mixture, examples, training=True)
    assert fit.depth == "answers"
    after = {each.expert: each.losses.mixture for each in judge(mixture, fit.held_out)}
    assert sum(after.values()) <= sum(losses.values()) + 1e-5
    if not fit.refinement.kept:
        for key, tensor in mixture.gate_state().items():
            close(tensor, start[key])


def test_training_moves_nothing_but_scale_and_shifts(
    mixture: MixtureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "gains", lambda before, after: True)  # whatever comes of it
    examples = {name: answered(name, 8) for name in WORDS}
    loramix.fit(mixture, examples)
    before = {key: tensor.clone() for key, tensor in mixture.gate_state().items()}
    fit = loramix.fit(mixture, examples, training=True)
    assert fit.refinement.kept
    trained = mixture.gate_state()
    moved = False
    part = SOFT / mixture.prototypes.sharpness
    for key, start in before.items():
        if "prior" in key:
            close(trained[key], start)
        elif "lift" in key:  # as softly as training begins; units without effect stay
            ratios = torch.where(start == 0, part, trained[key] / start)
            softened = (ratios - part).abs() < 1e-4
            assert bool((softened | (trained[key] == start)).all())
        elif key.endswith("score.weight"):
            used = start != 0
            ratios = trained[key][used] / start[used]
            close(ratios, ratios[:1].expand_as(ratios))  # one scale for the whole gate
            moved |= not torch.equal(trained[key], start)
    assert moved
    assert all(each.requires_grad for each in next(iter(mixture.gates.values())).score.parameters())


def test_training_needs_answers_and_examples_to_be_judged_by(mixture: MixtureModel) -> None:
    few = {name: answered(name, 8) for name in WORDS}
    assert loramix.fit(mixture, few).depth == "prompts"
    with pytest.raises(DataError, match="training needs held-out examples"):
        loramix.fit(mixture, few, training=True, held_out=0.0)
    with pytest.raises(DataError, match="the examples of a, b have none"):
        loramix.fit(mixture, {name: prompts(name, 8) for name in WORDS}, training=True)


def test_examples_are_for_all_experts_or_for_none(mixture: MixtureModel) -> None:
    with pytest.raises(DataError, match="none for b; every expert needs some"):
        loramix.fit(mixture, {"a": prompts("a", 4)})
    with pytest.raises(DataError, match="no expert 'bb' \\(did you mean 'b'"):
        loramix.fit(mixture, {"a": prompts("a", 4), "bb": prompts("b", 4)})


def verdict(name: str, weights: dict[str, float], **losses: object) -> ExpertVerdict:
    usual = {"base": 3.0, "own": 1.0, "other": 2.0, "other_name": "b", "uniform": 2.0}
    fine = {"mixture": 1.0, "behind": Difference(0.0, 0.1), "harm": Difference(-2.0, 0.1)}
    return ExpertVerdict(name, 8, weights, Losses(**{**usual, **fine, **losses}))


def test_warnings_name_what_is_wrong() -> None:
    assert warnings([verdict("a", {"a": 0.9, "b": 0.1})]) == []
    (alike,) = warnings([verdict("a", {"a": 0.6, "b": 0.4})])
    assert "'a' and 'b' cannot be told apart" in alike
    assert "40%" in alike
    (worse,) = warnings([verdict("a", {"a": 1.0}, own=4.0, harm=Difference(1.0, 0.1))])
    assert "'a' is worse than the base on its own examples (4.000 against 3.000)" in worse
    (behind,) = warnings([verdict("a", {"a": 1.0}, mixture=1.5, behind=Difference(0.5, 0.1))])
    assert "the mixture is behind 'a'" in behind
    noise = {"mixture": 1.5, "behind": Difference(0.5, 0.3)}
    assert warnings([verdict("a", {"a": 1.0}, **noise)]) == []


def test_the_share_of_gain_is_that_of_the_formula() -> None:
    losses = verdict("a", {"a": 1.0}, mixture=1.5).losses
    assert losses.share_of_gain == pytest.approx(0.75)
    assert verdict("a", {"a": 1.0}, own=3.5).losses.share_of_gain is None
