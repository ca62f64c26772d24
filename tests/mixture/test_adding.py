"""Experts that are added with a few prompts of their own, and none of the others'."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TARGETS, close, tiny_model
from test_prototypes import prompts, share

from loramix import GateConfig, MixtureModel
from loramix.errors import ExpertError, MixtureError
from loramix.mixture.prototypes import add_expert, from_examples

Experts = Callable[..., dict[str, Path]]
FITTED: dict[object, MixtureModel] = {}  # with prompts, by shape and settings of the gates


def of_two(experts: Experts, shape: str = "llama", **gate: object) -> MixtureModel:
    """Return a mixture that knows prompts of two experts; a copy of the same one each time."""
    made = shape, tuple(gate.items())
    if made not in FITTED:
        base, folders = tiny_model(shape), experts(shape, ("a", "b"))
        mixture = MixtureModel.from_experts(base, folders, gate=GateConfig(**gate)).eval()
        from_examples(mixture, {name: prompts(name, 6, seed=1) for name in ("a", "b")})
        FITTED[made] = mixture
    return copy.deepcopy(FITTED[made])


def shares(mixture: MixtureModel, name: str) -> float:
    found = [share(mixture, name, prompt) for prompt in prompts(name, 3, seed=2)]
    return sum(found) / len(found)


@pytest.mark.parametrize("gate", [{}, {"context": "token"}, {"first_pass": True}], ids=str)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_new_expert_gets_its_prompts_and_the_others_keep_theirs(
    experts: Experts, shape: str, gate: dict[str, object]
) -> None:
    mixture = of_two(experts, shape, hidden=2, **gate)
    before = {name: shares(mixture, name) for name in ("a", "b")}
    add_expert(mixture, "c", experts(shape)["c"], prompts("c", 6, seed=1))
    assert mixture.expert_names == ["a", "b", "c"]
    assert mixture.gate_config.hidden == 3  # there was no unit to spare
    assert shares(mixture, "c") > 0.7  # of all layers; these random ones mix up what they read
    lost = {name: before[name] - shares(mixture, name) for name in ("a", "b")}
    assert max(lost.values()) < 0.1, lost


def test_an_expert_of_an_encoder_decoder_is_added(experts: Experts) -> None:
    mixture = of_two(experts, "t5")
    add_expert(mixture, "c", experts("t5")["c"], prompts("c", 6, seed=1))
    assert shares(mixture, "c") > 0.8
    assert shares(mixture, "a") > 0.8


def test_untrained_gates_with_one_more_expert_are_those_of_all_experts(experts: Experts) -> None:
    """Of experts that scatter alike, the newcomer's threshold is that of the nearest mean."""
    grown = of_two(experts)
    add_expert(grown, "c", experts("llama")["c"], prompts("c", 6, seed=1))
    anew = MixtureModel.from_experts(tiny_model("llama"), experts("llama")).eval()
    from_examples(anew, {name: prompts(name, 6, seed=1) for name in ("a", "b", "c")})
    for reader, means_ED in anew.prototypes.means.items():
        close(grown.prototypes.means[reader], means_ED)
    assert grown.prototypes.means.keys() == anew.prototypes.means.keys()


def test_trained_rows_stay_as_they_are(experts: Experts) -> None:
    mixture = of_two(experts)
    with torch.no_grad():
        for gate in mixture.gates.values():
            gate.score.bias += torch.tensor([1.5, -0.5])  # what training may do
    kept = {name: gate.score.weight.clone() for name, gate in mixture.gates.items()}
    add_expert(mixture, "c", experts("llama")["c"], prompts("c", 6, seed=1))
    for name, gate in mixture.gates.items():
        close(gate.score.weight[:2], kept[name])
    assert shares(mixture, "c") > 0.8
    assert shares(mixture, "b") > 0.8


def test_a_saved_mixture_remembers_what_adding_needs(experts: Experts, tmp_path: Path) -> None:
    mixture = of_two(experts)
    mixture.save_pretrained(tmp_path / "saved")
    loaded = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    for each in (mixture, loaded):
        add_expert(each, "c", experts("llama")["c"], prompts("c", 6, seed=1))
    ids = prompts("c", 1, seed=5)[0]
    close(loaded(**ids).logits, mixture(**ids).logits)


def test_an_expert_may_adapt_layers_that_no_other_does(
    experts: Experts, make_expert: Callable[..., Path]
) -> None:
    wide = make_expert("llama", "wide", seed=5, target_modules=[*TARGETS["llama"], "down_proj"])
    mixture = of_two(experts)
    add_expert(mixture, "c", wide, prompts("c", 6, seed=1))
    down = "model.layers.0.mlp.down_proj"
    assert float(mixture.weights(**prompts("c", 1, seed=3)[0])[down][0, 2]) > 0.8
    assert float(mixture.weights(**prompts("a", 1, seed=3)[0])[down][0, 2]) < 0.2


def test_an_expert_can_go_and_come_back(experts: Experts) -> None:
    mixture = of_two(experts)
    before = {name: shares(mixture, name) for name in ("a", "b")}
    mixture.remove_expert("b")
    add_expert(mixture, "b", experts("llama")["b"], prompts("b", 6, seed=1))
    assert {name: shares(mixture, name) for name in ("a", "b")} == pytest.approx(before, abs=0.05)


def test_what_adding_needs_is_said_and_nothing_is_changed(
    experts: Experts, make_expert: Callable[..., Path], tmp_path: Path
) -> None:
    folder = experts("llama")["c"]
    unknown = MixtureModel.from_experts(tiny_model("llama"), experts("llama", ("a", "b")))
    with pytest.raises(MixtureError, match="does not remember the prompts"):
        add_expert(unknown, "c", folder, prompts("c", 2, seed=1))
    unprompted = of_two(experts)
    unprompted.add_expert("c", folder)
    with pytest.raises(MixtureError, match="does not remember the prompts"):
        add_expert(unprompted, "d", folder, prompts("c", 2, seed=1))

    mixture = of_two(experts, hidden=2)
    before = mixture(**prompts("a", 1, seed=3)[0]).logits
    with pytest.raises(MixtureError, match="there are none for the new expert 'c'"):
        add_expert(mixture, "c", folder, [])
    with pytest.raises(MixtureError, match="already; the experts are"):
        add_expert(mixture, "a", folder, prompts("c", 2, seed=1))
    with pytest.raises(ExpertError, match="give the base that it was trained on"):
        add_expert(mixture, "c", make_expert("gpt2", "other", seed=1), prompts("c", 2, seed=1))
    with pytest.raises(IndexError):  # no token of the base
        add_expert(mixture, "c", folder, [{"input_ids": torch.tensor([[10_000]])}])
    assert mixture.expert_names == ["a", "b"]
    assert mixture.gate_config.hidden == 2
    close(mixture(**prompts("a", 1, seed=3)[0]).logits, before)
    mixture.save_pretrained(tmp_path / "saved")
    add_expert(mixture, "c", folder, prompts("c", 2, seed=1))
