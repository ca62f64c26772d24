"""Export: at fixed weights a mixture is one ordinary adapter, or one ordinary model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, peft_logits, save_expert, strengthen, target_logits, tiny_model, tokens
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from loramix import GateConfig, MixtureModel
from loramix.bases.tiny import tiny_tokenizer
from loramix.errors import MixtureError

Experts = Callable[..., dict[str, Path]]
SHAPES = ["t5", "llama", "gpt2"]
IDS, TARGET = tokens(1, 6), tokens(1, 4, seed=1)
WEIGHTS = {"a": 0.7, "c": -0.4}


def build(experts: Experts, shape: str, **gate: object) -> MixtureModel:
    return strengthen(
        MixtureModel.from_experts(tiny_model(shape), experts(shape), gate=GateConfig(**gate))
    )


@pytest.mark.parametrize("mixing", ["output", "parameter"])
@pytest.mark.parametrize("shape", SHAPES)
def test_peft_serves_an_export_like_the_mixture(
    experts: Experts, tmp_path: Path, shape: str, mixing: str
) -> None:
    mixture = build(experts, shape, mixing=mixing)
    mixture.export(tmp_path / "fixed", weights=WEIGHTS)
    with mixture.fixed(WEIGHTS):
        close(
            peft_logits(shape, tmp_path / "fixed", IDS, TARGET), target_logits(mixture, IDS, TARGET)
        )
    mixture.export(tmp_path / "prompt", prompt={"input_ids": IDS})
    close(peft_logits(shape, tmp_path / "prompt", IDS, TARGET), target_logits(mixture, IDS, TARGET))
    assert PeftConfig.from_pretrained(str(tmp_path / "fixed")).r == (
        12 if mixing == "output" else 4
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_serves_an_export_by_itself(
    experts: Experts, tmp_path: Path, shape: str
) -> None:
    """Through transformers' own loader of adapters, and by the base that the adapter names."""
    tiny_model(shape).save_pretrained(tmp_path / "base")
    tiny_tokenizer("tiny-llama").save_pretrained(tmp_path / "base")
    auto = AutoModelForSeq2SeqLM if shape == "t5" else AutoModelForCausalLM
    mixture = strengthen(MixtureModel.from_experts(str(tmp_path / "base"), experts(shape)))
    mixture.export(tmp_path / "adapter", weights=WEIGHTS)
    served = auto.from_pretrained(tmp_path / "adapter").eval()
    with mixture.fixed(WEIGHTS):
        close(target_logits(served, IDS, TARGET), target_logits(mixture, IDS, TARGET))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_merged_model_needs_nothing_else(experts: Experts, tmp_path: Path, shape: str) -> None:
    mixture = build(experts, shape)
    before = target_logits(mixture, IDS, TARGET)
    mixture.export(tmp_path / "merged", prompt={"input_ids": IDS}, merged=True)
    auto = AutoModelForSeq2SeqLM if shape == "t5" else AutoModelForCausalLM
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    close(target_logits(merged, IDS, TARGET), before)
    assert torch.equal(target_logits(mixture, IDS, TARGET), before)
    plain = tiny_model(shape)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert merged.generation_config.eos_token_id == plain.generation_config.eos_token_id


def test_experts_of_different_ranks_and_layers_are_padded_to_one_rank(
    experts: Experts, tmp_path: Path
) -> None:
    folders = {
        "part": save_expert(tmp_path / "part", "llama", seed=1, r=2, target_modules=["q_proj"]),
        "wide": save_expert(
            tmp_path / "wide", "llama", seed=2, r=3, target_modules="all-linear", use_rslora=True
        ),
    }
    mixture = MixtureModel.from_experts(tiny_model("llama"), folders)
    mixture.export(tmp_path / "out", weights={"part": 0.5, "wide": 0.5})
    assert {
        value.shape[0]
        for key, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
        if "lora_A" in key
    } == {5}
    with mixture.fixed({"part": 0.5, "wide": 0.5}):
        close(
            peft_logits("llama", tmp_path / "out", IDS, TARGET), target_logits(mixture, IDS, TARGET)
        )


def test_targets_have_short_names_where_these_mean_the_same_layers(
    experts: Experts, tmp_path: Path
) -> None:
    build(experts, "llama").export(tmp_path / "all", weights={"a": 1.0})
    assert PeftConfig.from_pretrained(str(tmp_path / "all")).target_modules == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    one = save_expert(
        tmp_path / "one", "llama", seed=1, target_modules=["layers.1.self_attn.q_proj"]
    )
    MixtureModel.from_experts(tiny_model("llama"), {"one": one}).export(
        tmp_path / "part", weights={"one": 1.0}
    )
    assert PeftConfig.from_pretrained(str(tmp_path / "part")).target_modules == {
        "model.layers.1.self_attn.q_proj"
    }


def test_several_prompts_give_their_mean_weights(experts: Experts, tmp_path: Path) -> None:
    mixture, ids = build(experts, "llama"), tokens(3, 5)
    mixture.export(tmp_path / "mean", prompt={"input_ids": ids})
    mean = torch.stack([w.mean(0) for w in mixture.weights(input_ids=ids).values()])
    up = load_file(tmp_path / "mean" / "adapter_model.safetensors")
    first = next(iter(mixture.layers))
    update = mixture.experts[0].updates[first]
    close(
        up[f"base_model.model.{first}.lora_B.weight"][:, :4],
        update.up_OR * update.scale * mean[0, 0],
    )


def test_what_cannot_be_exported_is_refused_and_nothing_is_lost(
    experts: Experts, tmp_path: Path
) -> None:
    for context in ("running", "token", "reference"):
        with pytest.raises(MixtureError, match=f"'{context}' gate depend on more than the prompt"):
            build(experts, "llama", context=context).export(
                tmp_path / "no", prompt={"input_ids": IDS}
            )
    mixture = build(experts, "llama")
    for both in ({}, {"weights": {"a": 1.0}, "prompt": {"input_ids": IDS}}):
        with pytest.raises(MixtureError, match="needs either"):
            mixture.export(tmp_path / "no", **both)
    with pytest.raises(MixtureError, match="no expert 'd'"):
        mixture.export(tmp_path / "no", weights={"d": 1.0})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for merged in (False, True):
        with pytest.raises(FileExistsError, match="choose another folder"):
            mixture.export(tmp_path / "mine", weights={"a": 1.0}, merged=merged)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "no").exists()
