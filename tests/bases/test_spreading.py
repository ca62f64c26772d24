"""Bases larger than one device: spread with a part on disk, or quantised."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, save_given, strengthen, tiny_model, tokens
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from loramix import MixtureModel
from loramix.bases import spreading
from loramix.bases.loading import load_base
from loramix.bases.spreading import refuse_untrainable
from loramix.errors import BaseModelError, MixtureError, RecipeError
from loramix.experiment.graph import base_settings
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import BaseSpec
from loramix.experiment.run import Run
from loramix.experiment.runner import run
from loramix.experiment.stages import finetune, lora
from loramix.storage.files import read_csv

# Half of each model lies on disk, embeddings among it where they are not shared.
MAPS = {
    "llama": {
        "model.embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "disk",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    },
    "gpt2": {
        "transformer.wte": "disk",
        "transformer.wpe": "disk",
        "transformer.h.0": "disk",
        "transformer.h.1": "cpu",
        "transformer.ln_f": "disk",
        "lm_head": "disk",
    },
    "t5": {
        **dict.fromkeys(("shared", "encoder.embed_tokens", "decoder.embed_tokens"), "cpu"),
        **{"encoder.block": "disk", "encoder.final_layer_norm": "disk", "encoder.dropout": "cpu"},
        **{"decoder.block.0": "disk", "decoder.block.1": "cpu", "decoder.dropout": "cpu"},
        **{"decoder.final_layer_norm": "cpu", "lm_head": "cpu"},
    },
}


def spread(shape: str, folder: Path) -> PreTrainedModel:
    """Return the tiny model with a part of it on disk."""
    tiny_model(shape).save_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if shape == "t5" else AutoModelForCausalLM
    return auto.from_pretrained(folder, device_map=MAPS[shape]).eval()


@pytest.mark.parametrize("shape", MAPS)
def test_a_mixture_on_a_base_with_a_part_on_disk_is_that_on_the_whole_base(
    shape: str, experts: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    base = spread(shape, tmp_path / "base")
    assert {parameter.device.type for parameter in base.parameters()} == {"cpu", "meta"}
    mixtures = []
    for each in (tiny_model(shape), base):
        torch.manual_seed(0)
        mixtures.append(strengthen(MixtureModel.from_experts(each, experts(shape))))
    whole, offloaded = mixtures
    assert offloaded.device.type == "cpu"
    assert all(not gate.prior.is_meta for gate in offloaded.gates.values())
    ids = tokens(2, 7)
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    losses = [mixture(input_ids=ids, labels=labels) for mixture in mixtures]
    close(losses[0].logits, losses[1].logits)
    for each in losses:
        each.loss.backward()
    for name, gate in whole.gates.items():
        twin = dict(offloaded.gates[name].named_parameters())
        for key, parameter in gate.named_parameters():
            if parameter.grad is not None:
                close(parameter.grad, twin[key].grad)
    answers = [mixture.generate(ids[:1], max_new_tokens=4) for mixture in mixtures]
    assert torch.equal(*answers)
    with pytest.raises(MixtureError, match="offloaded"):
        offloaded.export(tmp_path / "merged", weights={"a": 1.0}, merged=True)


def test_what_an_adapter_started_from_is_read_of_offloaded_weights_too(
    make_expert: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_expert("llama", "a", seed=1, init_lora_weights="pissa")
    ids = tokens(1, 5)
    whole = MixtureModel.from_experts(tiny_model("llama"), {"a": folder})
    offloaded = MixtureModel.from_experts(spread("llama", tmp_path / "base"), {"a": folder})
    close(whole(input_ids=ids).logits, offloaded(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ('base.device_map={"": 5}', "GPU 5, and this machine has"),
        ('base.device_map={"lm_head": "ram"}', "'lm_head' is to lie on 'ram'"),
        ("base.device_map=balance", "did you mean 'balanced'"),
        ("base.quantisation=3bit", "base.quantisation"),
        ("base.device_map=auto", "'tiny-llama' is built in code"),
        ("base.quantisation=4bit", "'tiny-llama' is built in code"),
    ],
)
def test_what_cannot_be_spread_or_quantised_is_refused_before_any_work(
    setting: str, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe("tiny", [setting])


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreading, "find_spec", lambda name: None)
    folder = save_base(tmp_path)
    for quantisation in ("8bit", "4bit"):
        with pytest.raises(BaseModelError, match="pip install bitsandbytes"):
            load_base(str(folder), quantisation=quantisation)
        with pytest.raises(RecipeError, match="pip install bitsandbytes"):
            load_recipe("tiny", [f"base.name={folder}", f"base.quantisation={quantisation}"])


def test_where_a_base_lies_redoes_nothing_and_quantisation_does() -> None:
    plain = base_settings(BaseSpec())
    assert "quantisation" not in plain
    assert base_settings(BaseSpec(device_map="auto")) == plain
    assert base_settings(BaseSpec(quantisation="4bit")) != plain


def save_base(folder: Path) -> Path:
    """Save the base tiny-llama, with its tokenizer, and return its folder."""
    base = load_base("tiny-llama")
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    return folder / "base"


def test_a_training_of_offloaded_weights_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    recipe = load_recipe("tiny", [f"base.name={folder}"])
    base = recipe.base.model_copy(update={"device_map": device_map(folder)})
    offloaded, task = Run(recipe.model_copy(update={"base": base}), tmp_path), recipe.tasks[0]
    for work in (finetune.learn, lora.learn):
        with pytest.raises(BaseModelError, match=r"weights on devices.*are offloaded.*experts"):
            work(offloaded, task)


class Linear4bit(nn.Linear):
    """A layer of the name that bitsandbytes gives its own."""


def test_a_training_through_four_bits_in_memory_is_refused() -> None:
    model = tiny_model("llama")
    refuse_untrainable(model)
    model.model.layers[1].mlp.up_proj = Linear4bit(32, 64)
    with pytest.raises(BaseModelError, match=r"base\.quantisation=8bit"):
        refuse_untrainable(model)


def device_map(folder: Path) -> dict[str, str]:
    """Return a map of a saved base with its last layer on disk."""
    names = [name.removesuffix(".weight") for name in load_file(folder / "model.safetensors")]
    layers = {".".join(name.split(".")[:3]) for name in names if ".layers." in name}
    whole = {name for name in names if ".layers." not in name} | {"model.rotary_emb", "lm_head"}
    return {name: "disk" if name == max(layers) else "cpu" for name in layers | whole}


@pytest.mark.slow
def test_given_adapters_are_mixed_trained_and_asked_on_an_offloaded_base(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    given = {
        name: save_given(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2))
    }
    settings = [
        *(f"base.name={folder}", "samples=20", "gate.learning_rate=1e-2", "gate.keep_start=false"),
        *(f"experts.{name}={place}" for name, place in given.items()),
        *("tasks.haiku.expert=one", "tasks.title.expert=two"),
    ]
    recipe = load_recipe("tiny", settings)
    base = recipe.base.model_copy(update={"device_map": device_map(folder)})
    roots = tmp_path / "whole", tmp_path / "offloaded"
    for root, each in zip(roots, (recipe, recipe.model_copy(update={"base": base})), strict=True):
        run(each, root, stage="lora")
        run(each, root, stage="gate")
    for file in roots[0].rglob("*.csv"):
        assert read_csv(file) == read_csv(roots[1] / file.relative_to(roots[0])), file
    gates = [load_file(root / "cgm" / "models" / "gate.safetensors") for root in roots]
    for key, value in gates[0].items():
        close(value, gates[1][key])
