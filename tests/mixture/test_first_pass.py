"""Gates that decide together, from a first pass of the base alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, strengthen, tiny_model, tokens
from transformers import GenerationConfig

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError
from loramix.mixture.context import unit_scale
from loramix.mixture.prototypes import from_examples, remembered_weights

Experts = Callable[..., dict[str, Path]]


def build(experts: Experts, shape: str = "llama", **gate: object) -> MixtureModel:
    base = tiny_model(shape)
    config = GateConfig(first_pass=True, **gate)
    return strengthen(MixtureModel.from_experts(base, experts(shape), gate=config))


def read_by_the_base(mixture: MixtureModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean input of every layer while the base alone reads these tokens."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, name=name: found.update({name: unit_scale(args[0].mean(1))})
        )
        for name, layer in mixture.layers.items()
    ]
    with mixture.fixed({}):
        mixture(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def test_all_layers_get_the_weights_of_all_scores_in_a_pass_of_the_base(experts: Experts) -> None:
    mixture, ids = build(experts, temperature=0.8), tokens(3, 6)
    contexts = read_by_the_base(mixture, ids)
    scores = [
        gate.score(gate.lift(contexts[name]).relu()) / 0.8 for name, gate in mixture.gates.items()
    ]
    blocks = mixture.config.num_hidden_layers
    wanted = (torch.stack(scores).sum(0) / blocks).softmax(-1)
    found = mixture.weights(input_ids=ids)
    assert found.keys() == mixture.layers.keys()
    for weights in found.values():
        close(weights, wanted)
    assert float(wanted.std(0).max()) > 1e-3, "rows differ"


@torch.no_grad()
def test_what_experts_do_does_not_change_the_decision(experts: Experts) -> None:
    together, alone = build(experts), build(experts)
    one_by_one = strengthen(
        MixtureModel.from_experts(tiny_model("llama"), experts("llama"), gate=GateConfig())
    )
    ids = tokens(2, 7)
    before = one_by_one.weights(input_ids=ids), together.weights(input_ids=ids)
    for mixture in (one_by_one, together):
        for layer in mixture.layers.values():
            layer.up_OR *= 3.0
    after = one_by_one.weights(input_ids=ids), together.weights(input_ids=ids)
    last = list(together.layers)[-1]
    close(after[1][last], before[1][last])
    close(alone.weights(input_ids=ids)[last], before[1][last])
    assert float((after[0][last] - before[0][last]).abs().max()) > 1e-4, "these read the experts"


@pytest.mark.parametrize("shape", ["llama", "gpt2", "t5"])
@torch.no_grad()
def test_a_static_cache_changes_nothing(shape: str, experts: Experts) -> None:
    mixture, ids = build(experts, shape), tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padded
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    given = {"input_ids": ids, "attention_mask": mask}
    static = GenerationConfig(
        **settings, cache_implementation="static", disable_compile=True, use_cache=True
    )
    usual = mixture.generate(**given, generation_config=GenerationConfig(**settings))
    assert torch.equal(mixture.generate(**given, generation_config=static), usual)
    uncached = GenerationConfig(**settings, use_cache=False)
    assert torch.equal(mixture.generate(**given, generation_config=uncached), usual)


@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_prototypes_are_read_and_remembered_where_the_base_acts(
    shape: str, experts: Experts
) -> None:
    mixture = build(experts, shape, hidden=3)
    few = {
        name: [{"input_ids": tokens(3, 5, seed=place) % 10 + 10 * place}]
        for place, name in enumerate(mixture.expert_names)
    }
    from_examples(mixture, few)
    assert mixture.prototypes is not None
    name = next(iter(reversed(mixture.gates)))
    if shape == "llama":  # gates of a decoder beside an encoder read no layer's input
        read = read_by_the_base(mixture, few["b"][0]["input_ids"])
        close(mixture.prototypes.means[name][1], read[name].mean(0))
    assert min(remembered_weights(mixture).values()) > 0.9
    for place, each in enumerate(mixture.expert_names):
        assert float(mixture.weights(**few[each][0])[name][:, place].min()) > 0.9


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ({"context": "running"}, "or use context='prompt'"),
        ({"context": "reference"}, "or use context='prompt'"),
        ({"carry": True}, "leave out carry"),
    ],
)
def test_gates_that_decide_otherwise_have_none(gate: dict[str, object], told: str) -> None:
    with pytest.raises((ValueError, MixtureError), match=told):
        GateConfig(first_pass=True, **gate)


def test_prompts_cannot_be_read_compiled(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = build(experts)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(MixtureError, match="read prompts uncompiled"):
        mixture(input_ids=tokens(1, 5), use_cache=False)
