"""A mixture on disk: bit-exact, whole or not at all, and clear about what is wrong with it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import peft_logits, strengthen, target_logits, tiny_model, tokens
from peft import PeftModel

from loramix import GateConfig, MixtureModel
from loramix.bases.tiny import tiny_tokenizer
from loramix.config import Prompting
from loramix.errors import CheckpointError
from loramix.storage.card import add_measurements
from loramix.storage.files import write_csv

Experts = Callable[..., dict[str, Path]]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)


def build(experts: Experts, shape: str = "llama", **gate: object) -> MixtureModel:
    return strengthen(
        MixtureModel.from_experts(tiny_model(shape), experts(shape), gate=GateConfig(**gate))
    )


@pytest.mark.parametrize("context", ["prompt", "running", "token", "reference"])
@pytest.mark.parametrize("shape", ["t5", "llama", "gpt2"])
def test_c7_saved_and_loaded_is_bit_exact(
    experts: Experts, tmp_path: Path, shape: str, context: str
) -> None:
    mixture = build(
        experts, shape, context=context, scope="block", activation="top-k", temperature=0.5
    )
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model(shape))
    assert torch.equal(target_logits(mixture, IDS, TARGET), target_logits(again, IDS, TARGET))
    assert again.gate_config == mixture.gate_config
    assert not [
        file
        for file in (tmp_path / "saved").rglob("*")
        if file.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]


@pytest.mark.parametrize("shape", ["t5", "llama", "gpt2"])
def test_c7_saved_experts_are_adapters_of_peft(
    experts: Experts, tmp_path: Path, shape: str
) -> None:
    build(experts, shape).save_pretrained(tmp_path / "saved")
    for name, folder in experts(shape).items():
        copy = tmp_path / "saved" / "experts" / name
        assert torch.equal(
            peft_logits(shape, copy, IDS, TARGET), peft_logits(shape, folder, IDS, TARGET)
        )


def test_a_mixture_that_was_extended_and_trained_comes_back(
    experts: Experts, tmp_path: Path
) -> None:
    mixture = strengthen(
        MixtureModel.from_experts(tiny_model("llama"), experts("llama", ("a", "b")))
    )
    mixture.add_expert("c", experts("llama")["c"])
    with torch.no_grad():
        for gate in mixture.gates.values():
            gate.prior[2] = 0.3
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    assert torch.equal(target_logits(mixture, IDS, TARGET), target_logits(again, IDS, TARGET))
    assert all(gate.prior.requires_grad for gate in again.gates.values())


def test_experts_may_be_referred_to_instead_of_copied(experts: Experts, tmp_path: Path) -> None:
    folders = {
        name: Path(shutil.copytree(folder, tmp_path / name))
        for name, folder in experts("llama").items()
    }
    mixture = strengthen(MixtureModel.from_experts(tiny_model("llama"), folders))
    mixture.save_pretrained(tmp_path / "saved", experts="reference")
    assert not (tmp_path / "saved" / "experts").exists()
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    assert torch.equal(target_logits(mixture, IDS, TARGET), target_logits(again, IDS, TARGET))
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 99}))
    with pytest.raises(
        CheckpointError, match=r"adapter_config\.json is not the file that was saved"
    ):
        MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))


@pytest.mark.parametrize("name", ["legal/eu", "..", "Ünï çode", "a|b", "x" * 60])
def test_experts_may_have_any_name(experts: Experts, tmp_path: Path, name: str) -> None:
    folder = experts("llama")["a"]
    MixtureModel.from_experts(tiny_model("llama"), {name: folder}).save_pretrained(
        tmp_path / "in" / "saved"
    )
    again = MixtureModel.from_pretrained(tmp_path / "in" / "saved", base=tiny_model("llama"))
    assert again.expert_names == [name]
    (copy,) = (tmp_path / "in" / "saved" / "experts").iterdir()
    PeftModel.from_pretrained(tiny_model("llama"), copy)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["saved"]


@pytest.mark.parametrize("file", ["gate.safetensors", "experts/b/adapter_model.safetensors"])
def test_missing_and_changed_files_are_named(experts: Experts, tmp_path: Path, file: str) -> None:
    build(experts).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / file
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=f"{path.name} is not the file"):
        MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    path.unlink()
    with pytest.raises(ValueError, match=path.name):
        MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))


def test_newer_and_damaged_configurations_are_told_apart(experts: Experts, tmp_path: Path) -> None:
    build(experts).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "mixture_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "schema_version": 6, "new": "thing"}))
    with pytest.raises(
        CheckpointError,
        match=r"schema version 6, but loramix .* reads up to 5; pip install --upgrade",
    ):
        MixtureModel.from_pretrained(tmp_path / "saved")
    for damage in ("{", "[]", json.dumps({**content, "gate": {"contxt": "prompt"}})):
        file.write_text(damage)
        with pytest.raises(CheckpointError, match="is damaged"):
            MixtureModel.from_pretrained(tmp_path / "saved")
    file.unlink()
    with pytest.raises(CheckpointError, match="is no mixture"):
        MixtureModel.from_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="'nobody/nothing': it is no folder, and not in"):
        MixtureModel.from_pretrained("nobody/nothing")


def test_an_interrupted_save_leaves_the_older_one(
    experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = build(experts)
    mixture.save_pretrained(tmp_path / "saved")
    before = {file: file.read_bytes() for file in (tmp_path / "saved").rglob("*") if file.is_file()}

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        mixture.save_pretrained(tmp_path / "saved")
    assert {
        file: file.read_bytes() for file in (tmp_path / "saved").rglob("*") if file.is_file()
    } == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_only_mixtures_are_replaced(experts: Experts, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        build(experts).save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_base_may_be_given_by_path(experts: Experts, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer("tiny-llama").save_pretrained(tmp_path / "base")
    mixture = strengthen(MixtureModel.from_experts(str(tmp_path / "base"), experts("llama")))
    mixture.save_pretrained(tmp_path / "saved")
    for base in (None, str(tmp_path / "base")):
        again = MixtureModel.from_pretrained(tmp_path / "saved", base)
        assert torch.equal(target_logits(mixture, IDS, TARGET), target_logits(again, IDS, TARGET))


def test_the_card_tells_what_a_mixture_is_and_what_a_run_found(
    experts: Experts, tmp_path: Path
) -> None:
    mixture = build(experts)
    mixture.prompting = Prompting(chat=True, templates={"haiku": "write a haiku about {input}"})
    mixture.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "# A mixture of 3 LoRA adapters" in card
    assert "| context | prompt |" in card
    assert "chat template; haiku: `write a haiku about {input}`" in card
    assert "## Scores" not in card
    assert "$" not in card
    scores = {
        "ROUGE": [
            {"model": "base", "haiku rouge1": "0.1"},
            {"model": "CGM LoRA", "haiku rouge1": "0.2"},
        ]
    }
    add_measurements(
        tmp_path / "saved", "name: mine\n", scores, [{"task": "haiku", "a": 0.9, "b": 0.1}]
    )
    card = (tmp_path / "saved" / "README.md").read_text()
    for line in (
        "### ROUGE",
        "| CGM LoRA | 0.2 |",
        "| task | a | b |",
        "| haiku | 0.9 | 0.1 |",
        "name: mine",
    ):
        assert line in card
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    assert again.prompting == mixture.prompting


@pytest.mark.parametrize(
    ("base", "named"),
    [("google-t5/t5-large", True), ("smollm2-135m", False), ("/models/t5", False)],
)
def test_the_card_names_the_base_to_the_hub_if_it_lies_there(
    experts: Experts, tmp_path: Path, base: str, named: bool
) -> None:
    mixture = build(experts)
    mixture.base_name = base
    mixture.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert (f"\nbase_model: {base}\n" in card) is named
    assert f"Base model: `{base}`" in card
    assert "| k |" not in card


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_whoever_the_umask_allows_can_read_every_file(
    experts: Experts, tmp_path: Path, umask: int
) -> None:
    mixture, before = build(experts), os.umask(umask)
    try:
        mixture.save_pretrained(tmp_path / "saved")
        mixture.export(tmp_path / "adapter", weights={"a": 1.0})
        mixture.export(tmp_path / "merged", weights={"a": 1.0}, merged=True)
        write_csv(tmp_path / "tables" / "a.csv", ["a"], [[1]])
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path != tmp_path]
    assert (tmp_path / "saved" / "gate.safetensors") in written
    for path in written:
        whole = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == whole & ~umask, path
