"""Settings of adapters: every field of PEFT's LoraConfig is known, and none passes unseen."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import close, peft_logits, target_logits, tiny_model, tokens
from peft import LoraConfig

from loramix import MixtureModel
from loramix.errors import ExpertError
from loramix.storage.adapter_config import HANDLED, HARMLESS, REFUSED, read_adapter_config
from loramix.storage.experts import load_expert

MakeExpert = Callable[..., Path]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)


def set_field(folder: Path, **changes: object) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("field", [field.name for field in fields(LoraConfig)])
def test_every_field_of_the_installed_peft_is_in_one_list(field: str) -> None:
    assert [field in names for names in (HARMLESS, HANDLED, REFUSED)].count(True) == 1


@pytest.mark.parametrize("field", [*REFUSED, "a_field_of_the_next_peft"])
def test_a_set_field_that_is_not_allowed_is_refused_by_name(
    make_expert: MakeExpert, field: str
) -> None:
    folder = set_field(make_expert("llama", "odd", seed=1), **{field: {"some": "value"}})
    with pytest.raises(ExpertError, match=rf"expert 'odd' .*{field}={{'some': 'value'}}"):
        MixtureModel.from_experts(tiny_model("llama"), {"odd": folder})


def test_a_learning_rate_of_another_trainer_is_harmless(make_expert: MakeExpert) -> None:
    folder = set_field(make_expert("llama", "new", seed=1), lorap_emb_lr=1e-6, merge_weights=True)
    assert load_expert("new", folder).updates


@pytest.mark.parametrize("empty", [None, False, [], {}])
def test_an_unknown_field_that_is_not_set_is_nothing(
    make_expert: MakeExpert, empty: object
) -> None:
    folder = set_field(make_expert("llama", "new", seed=1), a_field_of_the_next_peft=empty)
    assert load_expert("new", folder).updates


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_plain(make_expert: MakeExpert, start: object) -> None:
    folder = set_field(make_expert("llama", "plain", seed=1), init_lora_weights=start)
    if start == "eva":
        set_field(folder, eva_config={"rho": 2.0})
    mixture = MixtureModel.from_experts(tiny_model("llama"), {"plain": folder})
    with mixture.fixed({"plain": 1.0}):
        close(target_logits(mixture, IDS, TARGET), peft_logits("llama", folder, IDS, TARGET))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("pissa_niter_16", "random approximation"),
        ("corda", "the adapter does not tell"),
        ("loftq", "the adapter does not tell"),
        ("lora_ga", "the adapter does not tell"),
        ("of_next_year", "does not know"),
    ],
)
def test_starts_that_changed_the_base_are_refused_with_the_remedy(
    make_expert: MakeExpert, start: str, words: str
) -> None:
    folder = set_field(make_expert("llama", "odd", seed=1), init_lora_weights=start)
    with pytest.raises(
        ExpertError, match=f"init_lora_weights='{start}'.*{words}.*path_initial_model_for"
    ):
        load_expert("odd", folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no settings"),
        ('{"peft_type": "IA3"}', "is a IA3 adapter; only LoRA"),
        ('{"peft_type": "LORA", "target_parameters": "all"}', "target_parameters='all', and"),
    ],
)
def test_damaged_and_other_settings_are_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ExpertError, match=f"expert 'odd'.*{words}"):
        read_adapter_config("odd", tmp_path / "adapter_config.json")


def test_layers_that_peft_would_leave_out_are_refused(make_expert: MakeExpert) -> None:
    folder = set_field(make_expert("llama", "odd", seed=1), target_modules=["q_proj"])
    with pytest.raises(ExpertError, match="which its settings do not name"):
        MixtureModel.from_experts(tiny_model("llama"), {"odd": folder})


def test_the_settings_are_checked_before_the_base_is_loaded(make_expert: MakeExpert) -> None:
    folder = set_field(make_expert("llama", "odd", seed=1), alora_invocation_tokens=[3, 4])
    with pytest.raises(ExpertError, match=r"activated LoRA.*alora_invocation_tokens=\[3, 4\]"):
        MixtureModel.from_experts("no-such-base", {"odd": folder})
