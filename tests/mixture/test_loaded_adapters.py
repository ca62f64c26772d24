"""Mixtures of the adapters that a PeftModel has loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import close, peft_logits, target_logits, tiny_model, tokens
from peft import PeftModel

from loramix import MixtureModel
from loramix.errors import CheckpointError, ExpertError

Experts = Callable[..., dict[str, Path]]


def loaded(folders: dict[str, Path], first: str = "a") -> PeftModel:
    model = PeftModel.from_pretrained(tiny_model("llama"), folders[first], adapter_name=first)
    for name in folders:
        if name != first:
            model.load_adapter(folders[name], adapter_name=name)
    return model.eval()


def test_each_adapter_is_the_expert_of_its_name(experts: Experts) -> None:
    folders = experts("llama")
    mixture = MixtureModel.from_peft(loaded(folders)).eval()
    assert mixture.expert_names == ["a", "b", "c"]
    ids, target = tokens(2, 5), tokens(2, 4, seed=1)
    for name, folder in folders.items():
        with mixture.fixed({name: 1.0}):
            close(target_logits(mixture, ids, target), peft_logits("llama", folder, ids, target))
    with mixture.fixed({}):
        close(target_logits(mixture, ids, target), target_logits(tiny_model("llama"), ids, target))


def test_the_default_adapter_is_taken_too_and_saved(experts: Experts, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(tiny_model("llama"), experts("llama")["a"])
    mixture = MixtureModel.from_peft(model)
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    assert again.expert_names == ["default"]
    ids = tokens(1, 6)
    close(again(input_ids=ids).logits, mixture(input_ids=ids).logits)


def test_merged_adapters_are_refused_and_stay(experts: Experts) -> None:
    model = loaded(experts("llama"))
    model.merge_adapter(["b"])
    with pytest.raises(ExpertError, match="b are merged into the base"):
        MixtureModel.from_peft(model)
    model.unmerge_adapter()
    assert MixtureModel.from_peft(model).expert_names == ["a", "b", "c"]


def test_what_is_no_exact_expert_is_refused_and_stays(
    experts: Experts, make_expert: Callable[..., Path]
) -> None:
    dora = make_expert("llama", "dora", seed=1, use_dora=True)
    model = loaded({"a": dora})
    with pytest.raises(ExpertError, match="DoRA"):
        MixtureModel.from_peft(model)
    assert isinstance(model, PeftModel)
    assert model.active_adapters == ["a"]


def test_a_reference_to_such_an_adapter_is_refused(experts: Experts, tmp_path: Path) -> None:
    mixture = MixtureModel.from_peft(loaded(experts("llama")))
    with pytest.raises(CheckpointError, match="experts='copy'"):
        mixture.save_pretrained(tmp_path / "saved", experts="reference")
    assert not (tmp_path / "saved").exists()
