"""What cannot hold is refused, with the reason and the way out."""

import pytest
import torch
from cases import Case, Experts
from conftest import tiny_model, tokens
from pydantic import ValidationError

from loramix import GateConfig, MixtureModel
from loramix.errors import ExpertError, MixtureError

SHAPES = ["t5", "llama", "gpt2"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_gate_does_not_generate(shape: str, experts: Experts) -> None:
    mixture = Case(shape, "reference").shared(experts)
    with pytest.raises(MixtureError, match="context='prompt'"):
        mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2)
    with mixture.fixed({"a": 1.0}):  # then no gate decides
        assert mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2).shape[0] == 1
    cache = tiny_model("llama")(input_ids=tokens(1, 4), use_cache=True).past_key_values
    if shape == "llama":
        with pytest.raises(MixtureError, match="whole sequence"):
            mixture(input_ids=tokens(1, 1), past_key_values=cache)


def test_prompt_gates_refuse_a_chunked_prefill(experts: Experts) -> None:
    mixture = Case("llama", "prompt").build(experts)
    with pytest.raises(MixtureError, match="whole prompt"):
        mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2, prefill_chunk_size=2)
    settings = mixture.base.generation_config
    settings.prefill_chunk_size = 2
    with pytest.raises(MixtureError, match="whole prompt"):
        mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2, generation_config=settings)


@pytest.mark.parametrize("context", ["prompt", "running", "token"])
def test_foreign_caches_are_refused_and_leave_nothing_behind(
    context: str, experts: Experts
) -> None:
    mixture, ids = Case("llama", context).shared(experts), tokens(1, 4)
    before = mixture(input_ids=ids).logits
    foreign = tiny_model("llama")(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(MixtureError, match="empty one"):
        mixture(input_ids=tokens(1, 1), past_key_values=foreign)
    assert torch.equal(before, mixture(input_ids=ids).logits)


def test_a_cache_of_other_rows_is_refused(experts: Experts) -> None:
    mixture = Case("llama", "running").shared(experts)
    cache = mixture(input_ids=tokens(2, 4), use_cache=True).past_key_values
    with pytest.raises(MixtureError, match="for 2 rows, but this call has 1"):
        mixture(input_ids=tokens(1, 1), past_key_values=cache)


def test_a_running_mean_takes_nothing_back(experts: Experts) -> None:
    mixture = Case("llama", "running").shared(experts)
    cache = mixture(input_ids=tokens(1, 4), use_cache=True).past_key_values
    with pytest.raises(MixtureError, match="cannot be cropped"):
        cache.crop(-1)
    cache.reset()
    assert cache.loramix_carried is None


def test_masks_that_gates_cannot_read_are_refused(experts: Experts) -> None:
    mixture, ids = Case("llama", "token").shared(experts), tokens(1, 4)
    with pytest.raises(MixtureError, match="of type list"):
        mixture.base(input_ids=ids, attention_mask=[1, 1, 1, 1])
    with pytest.raises(MixtureError, match="covers 3 tokens, but 0 lie in the cache and 4 are new"):
        mixture(input_ids=ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(MixtureError, match="input_ids or inputs_embeds"):
        mixture(attention_mask=torch.ones(1, 4))
    with pytest.raises(MixtureError, match="9 labels for 4 tokens"):
        Case("llama", "prompt").shared(experts)(input_ids=ids, labels=tokens(1, 9))


def test_what_belongs_to_other_models_is_refused(experts: Experts) -> None:
    mixture = Case("t5", "prompt").shared(experts)
    with pytest.raises(MixtureError, match="its encoder's input"):
        mixture(input_ids=tokens(1, 4), labels=tokens(1, 2), prompt_mask=torch.ones(1, 4).bool())
    layer = next(iter(mixture.layers.values()))
    with pytest.raises(MixtureError, match="outside its mixture"):
        layer(torch.zeros(1, 2, 32))


def test_shared_gates_refuse_what_would_not_reach_them(experts: Experts) -> None:
    mixture = Case("llama", "token", scope="block").build(experts)
    second = mixture.layers["model.layers.0.self_attn.v_proj"]
    handle = mixture.base.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: second(kwargs["hidden_states"]) and None, with_kwargs=True
    )
    with pytest.raises(MixtureError, match="use scope='layer'"):
        mixture(input_ids=tokens(1, 4))
    handle.remove()


def test_settings_that_contradict_each_other_are_refused(experts: Experts) -> None:
    with pytest.raises(ValidationError, match="sigmoid gate can turn every expert off"):
        GateConfig(activation="sigmoid", base_slot=True)
    with pytest.raises(MixtureError, match="use k=3 or less"):
        MixtureModel.from_experts(
            tiny_model("llama"), experts("llama"), gate=GateConfig(activation="top-k", k=4)
        )
    with pytest.raises(ExpertError, match="at least one"):
        MixtureModel.from_experts(tiny_model("llama"), {})


def test_gate_parameters_that_do_not_fit_are_refused(experts: Experts) -> None:
    mixture = Case("llama", "prompt").build(experts)
    state = mixture.gate_state()
    first = next(iter(state))
    with pytest.raises(MixtureError, match="1 parameters missing"):
        mixture.load_gate_state({key: value for key, value in state.items() if key != first})
    with pytest.raises(MixtureError, match="1 unknown"):
        mixture.load_gate_state({**state, "odd": torch.zeros(1)})
    with pytest.raises(MixtureError, match="has shape"):
        mixture.load_gate_state({**state, first: torch.zeros(1)})


def test_fixed_weights_need_a_row(experts: Experts) -> None:
    mixture = Case("llama", "prompt").shared(experts)
    with pytest.raises(MixtureError, match="one dict per row"):
        mixture.fixed([])
