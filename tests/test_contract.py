"""The contract of a mixture: the same function alone or in a batch, padded or not, cached or not, saved or not.

Gates and experts are scaled up, because near-uniform gates would hide every fault.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, tiny_model
from peft import PeftModel
from torch import Tensor

from loramix import GateConfig, MixtureModel
from loramix.errors import ExpertError, MixtureError

CAUSAL = ["llama", "gpt2"]
SHAPES = ["t5", *CAUSAL]
MIXING = ["output", "parameter"]
Build = Callable[..., MixtureModel]


def strong_gates(mixture: MixtureModel) -> MixtureModel:
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.randn(value.shape, generator=generator) * 1.5 for key, value in mixture.gate_state().items()}
    mixture.load_gate_state(
        {**state, **{key: torch.ones_like(value) for key, value in state.items() if "prior" in key}}
    )
    return mixture.eval()


@pytest.fixture
def build(make_expert: Callable[..., Path]) -> Build:
    def build(
        shape: str, mixing: str = "output", context: str = "prompt", names: tuple[str, ...] = ("a", "b")
    ) -> MixtureModel:
        seeds = {"a": 1, "b": 2}
        experts = {name: make_expert(shape, name, seed=seeds[name]) for name in names}
        config = GateConfig(mixing=mixing, context=context, hidden=8)
        return strong_gates(MixtureModel.from_experts(tiny_model(shape), experts, gate=config))

    return build


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor, count: int, side: str) -> tuple[Tensor, Tensor]:
    pad = torch.zeros(len(ids), count, dtype=torch.long)
    parts = [pad, ids] if side == "left" else [ids, pad]
    masks = (
        [torch.zeros_like(pad), torch.ones_like(ids)]
        if side == "left"
        else [torch.ones_like(ids), torch.zeros_like(pad)]
    )
    return torch.cat(parts, 1), torch.cat(masks, 1)


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def logits(mixture: MixtureModel, ids: Tensor, target: Tensor) -> Tensor:
    """Return the logits that predict `target` (and what follows) after the prompt `ids`."""
    if mixture.base.config.is_encoder_decoder:
        return mixture(input_ids=ids, decoder_input_ids=target).logits
    prompt = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1).bool()
    return mixture(input_ids=torch.cat([ids, target], 1), prompt_mask=prompt).logits[:, ids.shape[1] :]


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c1_a_row_is_the_same_alone_and_in_a_batch(build: Build, shape: str, mixing: str) -> None:
    mixture = build(shape, mixing)
    ids, target = tokens(4, 7), tokens(4, 5, seed=1)
    together = logits(mixture, ids, target)
    for row in range(4):
        close(together[row : row + 1], logits(mixture, ids[row : row + 1], target[row : row + 1]))


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", SHAPES)
def test_c2_padding_changes_nothing(build: Build, shape: str, side: str, mixing: str) -> None:
    mixture = build(shape, mixing)
    ids = tokens(2, 6)
    wide, mask = padded(ids, 4, side)
    if shape == "t5":
        target = tokens(2, 5, seed=1)
        plain = mixture(input_ids=ids, decoder_input_ids=target).logits
        if side == "left":  # T5's relative positions tell where a prompt starts, so only its gates must not care
            start = mixture.weights(input_ids=ids)["encoder.block.0.layer.0.SelfAttention.q"]
            close(
                start, mixture.weights(input_ids=wide, attention_mask=mask)["encoder.block.0.layer.0.SelfAttention.q"]
            )
            return
        close(plain, mixture(input_ids=wide, attention_mask=mask, decoder_input_ids=target).logits)
        return
    real = mixture(input_ids=wide, attention_mask=mask, position_ids=positions(mask)).logits[mask.bool()]
    close(mixture(input_ids=ids).logits.flatten(0, 1), real)


@pytest.mark.parametrize("shape", SHAPES)
def test_c3_future_targets_change_nothing(build: Build, shape: str) -> None:
    mixture = build(shape)
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    other = torch.cat([target[:, :2], tokens(2, 3, seed=9)], 1)
    close(logits(mixture, ids, target)[:, :2], logits(mixture, ids, other)[:, :2])


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c4_cached_steps_equal_one_pass(build: Build, shape: str, mixing: str) -> None:
    mixture = build(shape, mixing)
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    whole = logits(mixture, ids, target)
    steps, cache = [], None
    if shape == "t5":
        encoded = mixture.base.get_encoder()(input_ids=ids)
        for step in range(5):
            given = {"encoder_outputs": encoded, "decoder_input_ids": target[:, step : step + 1]}
            output = mixture(**given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    else:
        cache = mixture(input_ids=ids, use_cache=True).past_key_values
        for step in range(5):
            output = mixture(input_ids=target[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    close(whole, torch.cat(steps, 1))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_c4_generation_is_the_function_that_scores(build: Build, shape: str, beams: int) -> None:
    mixture = build(shape)
    ids = tokens(3, 6)
    wide, mask = padded(ids, 2, "right" if shape == "t5" else "left")
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    batch = mixture.generate(input_ids=wide, attention_mask=mask, **settings)[:, -6:]
    alone = [mixture.generate(input_ids=ids[row : row + 1], **settings)[0, -6:] for row in range(3)]
    assert torch.equal(batch, torch.stack(alone))
    uncached = mixture.generate(input_ids=wide, attention_mask=mask, use_cache=False, **settings)[:, -6:]
    if shape == "t5":  # without a cache a causal model cannot tell prompt from answer, step after step
        assert torch.equal(batch, uncached)
    if beams == 1:
        target = torch.cat([torch.zeros(3, 1, dtype=torch.long), batch[:, :-1]], 1) if shape == "t5" else batch
        scored = logits(mixture, ids, target).argmax(-1)
        expected = scored if shape == "t5" else scored[:, :-1]
        assert torch.equal(
            expected[:, : batch.shape[1] - (shape != "t5")][:, 1:], batch[:, 1:] if shape == "t5" else batch[:, 2:]
        )


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c5_one_expert_alone_is_its_peft_adapter(build: Build, tmp_path: Path, shape: str, mixing: str) -> None:
    mixture = build(shape, mixing)
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    with mixture.fixed({"b": 1.0}):
        mixed = logits(mixture, ids, target)
    single = PeftModel.from_pretrained(tiny_model(shape), tmp_path / "b").eval()
    if shape == "t5":
        close(mixed, single(input_ids=ids, decoder_input_ids=target).logits)
    else:
        close(mixed, single(input_ids=torch.cat([ids, target], 1)).logits[:, 6:])


@pytest.mark.parametrize("shape", SHAPES)
def test_c5_no_expert_is_the_base(build: Build, shape: str) -> None:
    mixture, base = build(shape), tiny_model(shape)
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    with mixture.fixed({}):
        mixed = logits(mixture, ids, target)
    if shape == "t5":
        close(mixed, base(input_ids=ids, decoder_input_ids=target).logits)
    else:
        assert torch.equal(mixed, base(input_ids=torch.cat([ids, target], 1)).logits[:, 6:])


@pytest.mark.parametrize("shape", SHAPES)
def test_c6_fixed_weights_equal_the_merged_model(build: Build, shape: str) -> None:
    mixture, merged = build(shape), tiny_model(shape)
    for name, layer in mixture.layers.items():
        delta = sum(
            weight * expert.updates[name].scale * expert.updates[name].up_OR @ expert.updates[name].down_RD
            for weight, expert in zip([0.7, -0.4], mixture.experts, strict=True)
        )
        weight = merged.get_submodule(name).weight
        weight.data += delta.T if shape == "gpt2" else delta
        assert layer.down_RD.shape[0] == 8
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    with mixture.fixed({"a": 0.7, "b": -0.4}):
        mixed = logits(mixture, ids, target)
    if shape == "t5":
        close(mixed, merged(input_ids=ids, decoder_input_ids=target).logits)
    else:
        close(mixed, merged(input_ids=torch.cat([ids, target], 1)).logits[:, 6:])


@pytest.mark.parametrize("shape", SHAPES)
def test_c7_saved_and_loaded_is_the_same(build: Build, tmp_path: Path, shape: str) -> None:
    mixture = build(shape)
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model(shape))
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    assert torch.equal(logits(mixture, ids, target), logits(again, ids, target))
    single = PeftModel.from_pretrained(tiny_model(shape), tmp_path / "saved" / "experts" / "a")
    assert single.active_adapter == "default"


def test_c8_the_order_of_experts_changes_nothing(build: Build) -> None:
    mixture, swapped = build("llama"), build("llama", names=("b", "a"))
    state = mixture.gate_state()
    swapped.load_gate_state({key: value.flip(0) if ".score." in f".{key}" else value for key, value in state.items()})
    ids, target = tokens(2, 6), tokens(2, 5, seed=1)
    close(logits(mixture, ids, target), logits(swapped, ids, target))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_c9_training_moves_the_gates_alone(build: Build, shape: str, checkpointing: bool) -> None:
    plain, mixture = build(shape), build(shape)
    if checkpointing:
        mixture.activation_checkpointing_enable()
    before = {key: value.clone() for key, value in mixture.state_dict().items()}
    mixture.train()
    plain.train()
    for module in [*mixture.modules(), *plain.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    ids = tokens(2, 8)
    labels = tokens(2, 4, seed=1) if shape == "t5" else torch.cat([torch.full((2, 4), -100), ids[:, 4:]], 1)
    gradients = []
    for model in (plain, mixture):
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(".gate." in key for key in gradients[0])
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-6, rtol=1e-3)
    torch.optim.SGD([p for p in mixture.parameters() if p.requires_grad], lr=0.1).step()
    moved = {key for key, value in mixture.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(".gate." in key for key in moved)


def test_c9_two_threads_do_not_see_each_other(build: Build) -> None:
    mixture = build("llama")
    requests = [tokens(1, 6, seed=seed) for seed in range(2)]
    expected = [mixture.weights(input_ids=ids) for ids in requests]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(20):
            found = mixture.weights(input_ids=requests[index])
            if any(not torch.allclose(found[name], expected[index][name]) for name in found):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gates_see_the_prompt_alone_when_labels_are_given(build: Build) -> None:
    mixture = build("llama")
    ids = tokens(1, 9)
    labels = torch.cat([torch.full((1, 5), -100), ids[:, 5:]], 1)
    prompt = torch.arange(9)[None] < 5
    close(mixture(input_ids=ids, labels=labels).logits, mixture(input_ids=ids, prompt_mask=prompt).logits)
    kept = mixture(input_ids=ids, labels=labels[:, -5:], logits_to_keep=5)
    close(kept.loss, mixture(input_ids=ids, labels=labels).loss)


def test_the_reference_gate_is_the_reference_formula(build: Build) -> None:
    """One sequence through one layer: softmax of the mean score, matrices mixed separately."""
    mixture = build("t5", "parameter", "reference")
    layer = next(iter(mixture.layers.values()))
    update = [expert.updates[layer.name] for expert in mixture.experts]
    x = mixture.base.shared(tokens(1, 6))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    mixture(inputs_embeds=x, decoder_input_ids=tokens(1, 3))
    x = seen[0]
    scores = torch.relu(x @ layer.gate.lift.weight.T) @ layer.gate.score.weight.T
    gate = scores.mean(1).softmax(-1)[0]
    down = sum(weight * each.down_RD for weight, each in zip(gate, update, strict=True))
    up = sum(weight * each.up_OR * each.scale for weight, each in zip(gate, update, strict=True))
    close(seen[1], layer.base(x) + x @ down.T @ up.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_gate_scores_padded_rows_but_refuses_to_generate(build: Build, shape: str) -> None:
    mixture = build(shape, "parameter", "reference")
    with pytest.raises(MixtureError, match="context='prompt'"):
        mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2)
    labels = tokens(1, 4, seed=1)
    wide = torch.cat([labels, torch.full((1, 3), -100)], 1)
    if shape == "t5":
        close(mixture(input_ids=tokens(1, 5), labels=labels).loss, mixture(input_ids=tokens(1, 5), labels=wide).loss)


def test_chunked_prefill_and_foreign_caches_are_refused(build: Build) -> None:
    mixture = build("llama")
    with pytest.raises(MixtureError, match="whole prompt"):
        mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2, prefill_chunk_size=2)
    foreign = tiny_model("llama")(input_ids=tokens(1, 4), use_cache=True).past_key_values
    with pytest.raises(MixtureError, match="empty one"):
        mixture(input_ids=tokens(1, 1), past_key_values=foreign)
    close(*[mixture(input_ids=tokens(1, 4)).logits for _ in range(2)])


def test_experts_may_differ_in_rank_scale_and_layers(make_expert: Callable[..., Path]) -> None:
    experts = {
        "wide": make_expert("llama", "wide", seed=1, r=6, lora_alpha=3, use_rslora=True),
        "part": make_expert(
            "llama", "part", seed=2, r=2, target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 3},
            alpha_pattern={"layers.1.self_attn.q_proj": 5},
        ),
    }  # fmt: skip
    mixture = strong_gates(MixtureModel.from_experts(tiny_model("llama"), experts))
    ids = tokens(2, 6)
    for name, folder in experts.items():
        single = PeftModel.from_pretrained(tiny_model("llama"), folder).eval()
        with mixture.fixed({name: 1.0}):
            close(mixture(input_ids=ids).logits, single(input_ids=ids).logits)
    with pytest.raises(MixtureError, match="equal ranks"):
        MixtureModel.from_experts(tiny_model("llama"), experts, gate=GateConfig(mixing="parameter"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias training"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(
    make_expert: Callable[..., Path], settings: dict[str, object], named: str
) -> None:
    folder = make_expert("llama", "odd", seed=1, **settings)
    with pytest.raises(ExpertError, match=named):
        MixtureModel.from_experts(tiny_model("llama"), {"odd": folder})


def test_an_expert_of_another_base_is_refused(make_expert: Callable[..., Path]) -> None:
    with pytest.raises(ExpertError, match="another base"):
        MixtureModel.from_experts(tiny_model("gpt2"), {"a": make_expert("llama", "a", seed=1)})
    with pytest.raises(ExpertError, match="neither a folder"):
        MixtureModel.from_experts(tiny_model("gpt2"), {"a": "no/such/folder"})


def test_unknown_experts_get_the_nearest_name(build: Build) -> None:
    with pytest.raises(MixtureError, match="no expert 'c'"), build("llama").fixed({"c": 1.0}):
        pass
