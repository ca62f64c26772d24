"""Recipes with given adapters: what a run makes of them, and what is refused before any work."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import save_given
from peft import PeftModel

from loramix import MixtureModel
from loramix.bases.tiny import tiny_model
from loramix.errors import RecipeError
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.experiment.stages.lora import take_over

Call = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [
    pytest.mark.axes(False),  # smaller tests check them
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]
SMALL = [
    *("samples=60", "generation.test_samples=2", "gate.epochs=1", "gate.supervised=0.1"),
    *("finetune.epochs=1", "finetune.train_samples=4", "lora.epochs=1", "lora.train_samples=8"),
    *("gate.train_samples=8", "gate.bare=0"),
    *(f"{stage}.validation_samples=2" for stage in ("finetune", "lora", "gate")),
]
RECIPE = """
extends: tiny
name: given
experts:
  terse texts: {terse}
tasks:
  - {{use: demo-haiku, name: haiku, max_new_tokens: 4}}
  - {{use: demo-title, name: title, max_new_tokens: 4, expert: terse texts}}
  - {{use: demo-command, name: command, max_new_tokens: 4, expert: terse texts}}
  - {{use: demo-title, name: spare, max_new_tokens: 4, expert: none}}
"""


def recipe_of(folder: Path, terse: object, *settings: str) -> Recipe:
    file = folder / "given.yaml"
    file.write_text(RECIPE.format(terse=json.dumps(terse)))
    return load_recipe(str(file), [*SMALL, *settings])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def finished(place: Path, without_plots: None) -> Path:
    adapter = save_given(place / "terse", use_rslora=True, rank_pattern={"up_proj": 3})
    runner.run(recipe_of(place, str(adapter)), place / "run")
    return place / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(root: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (root / ".stages").glob("*.json")}


def test_trained_and_given_experts_are_mixed_and_answer_everything(finished: Path) -> None:
    mixture = MixtureModel.from_pretrained(finished / "cgm" / "models")
    assert mixture.expert_names == ["haiku", "terse texts"]
    models = ["base", "full finetune", "LoRA haiku", "LoRA terse texts", "CGM LoRA"]
    assert [row["model"] for row in rows(finished / "test_loss.csv")] == models
    for task in ("haiku", "title", "command", "spare"):
        for expert in ("haiku", "terse texts"):
            assert len(rows(finished / "lora" / expert / f"{task}.csv")) == 2
    assert not (finished / "lora" / "terse texts" / "losses.csv").exists()
    page = (finished / "report.html").read_text()
    assert "LoRA terse texts" in page


def test_the_weights_are_those_of_every_task_and_expert(finished: Path) -> None:
    experts = {"haiku", "terse texts"}
    found = rows(finished / "cgm" / "weights.csv")
    tasks = {"haiku", "title", "command", "spare"}
    assert {(row["task"], row["expert"]) for row in found} == {
        (task, expert) for task in tasks for expert in experts
    }
    steps = rows(finished / "cgm" / "routing_steps.csv")
    assert {row["task"] for row in steps} == tasks - {"spare"}, "it has no expert to learn"
    assert {row["expert"] for row in steps} == experts


def test_what_gates_learned_from_is_what_has_an_expert(finished: Path) -> None:
    learned = rows(finished / "cgm" / "learned_from.csv")
    assert {row["task"] for row in learned} == {"haiku", "title", "command"}


def test_a_given_adapter_computes_what_it_computes_in_peft(finished: Path, place: Path) -> None:
    ids = torch.arange(5, 25)[None]
    own = PeftModel.from_pretrained(tiny_model("tiny-llama"), place / "terse").eval()
    expected = own(input_ids=ids).logits
    taken = finished / "lora" / "terse texts" / "models"
    alone = PeftModel.from_pretrained(tiny_model("tiny-llama"), taken).eval()
    mixture = MixtureModel.from_pretrained(finished / "cgm" / "models")
    torch.testing.assert_close(alone(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    with mixture.fixed({"terse texts": 1.0}):
        torch.testing.assert_close(mixture(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert mixture.experts[1].source == str(place / "terse")


@pytest.mark.parametrize(
    ("base", "settings", "lossy"),
    [
        (
            "tiny-llama",
            {"r": 5, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}},
            [],
        ),
        ("tiny-llama", {"init_lora_weights": "pissa"}, []),
        ("tiny-llama", {"target_modules": r".*layers\.1.*(q_proj|up_proj)"}, []),
        ("tiny-llama", {"modules_to_save": ["embed_tokens"]}, ["modules_to_save"]),
        ("tiny-gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, []),
        ("tiny-t5", {"target_modules": ["q", "wo"]}, []),
    ],
)
def test_an_adapter_of_any_kind_is_taken_over_as_it_is(
    base: str, settings: dict[str, object], lossy: list[str], tmp_path: Path
) -> None:
    source = save_given(tmp_path / "terse", base=base, **settings)
    terse = {"source": str(source), "lossy": lossy}
    run = Run(recipe_of(tmp_path, terse, f"base.name={base}"), tmp_path / "run")
    take_over(run, "terse texts")
    ids = torch.arange(5, 25)[None]
    given = {"input_ids": ids, "labels": ids} if base == "tiny-t5" else {"input_ids": ids}
    whole = PeftModel.from_pretrained(tiny_model(base), source).eval()
    alone = PeftModel.from_pretrained(tiny_model(base), run.adapter("terse texts")).eval()
    expected = whole(**given).logits
    torch.testing.assert_close(alone(**given).logits, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(tiny_model(base)(**given).logits, expected, atol=1e-2)


@pytest.mark.slow
def test_the_example_of_the_documents_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    (tmp_path / "example.yaml").write_text(text.partition("```text\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    save_given(tmp_path / "adapters" / "sql")
    save_given(tmp_path / "adapters" / "legal" / "checkpoint-10", seed=2)
    recipe = load_recipe("example.yaml")
    assert recipe.expert_names == ["demo-haiku", "terse sql", "legal"]
    assert recipe.own_experts["demo-title"] == "legal"
    checked = call("check", "example.yaml", "samples=60")
    assert checked.returncode == 0, checked.stderr
    gate = 64 + 64 * 8 + 8 + 8 * 3 + 3  # of three experts, with the query of its attention
    assert f"gates {2 * gate:,}" in checked.stdout, "one for each block"


COMMITS = "a" * 40, "b" * 40


def test_adapters_of_the_hub_are_pinned_and_a_run_goes_on_with_its_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--someone--terse"
    (repository / "refs").mkdir(parents=True)
    for seed, commit in enumerate(COMMITS):
        save_given(repository / "snapshots" / commit / "deep", seed=seed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def pin(terse: object, main: str) -> tuple[str, str | None]:
        (repository / "refs" / "main").write_text(main)
        (repository / "refs" / "v1").write_text(COMMITS[0])
        pinned = runner.pin(recipe_of(tmp_path, terse), tmp_path / "recipe.yaml")
        (tmp_path / "recipe.yaml").write_text(pinned.to_yaml())
        assert load_recipe(str(tmp_path / "recipe.yaml")) == pinned
        spec = pinned.experts["terse texts"]
        return spec.place, spec.revision

    old, new = COMMITS
    place = "someone/terse/deep"
    assert pin(place, old) == (place, old)
    assert pin(place, new) == (place, old), "the run was begun with it"
    assert pin({"source": "someone/terse", "subfolder": "deep"}, new) == (place, new)
    assert pin({"source": "someone/terse", "subfolder": "deep"}, old) == (place, new)
    assert pin("someone/terse/deep@v1", new) == (place, old)
    assert pin({"source": place, "revision": "main"}, new) == (place, new)


@pytest.mark.slow
def test_a_changed_adapter_redoes_what_depends_on_it_and_nothing_else(
    finished: Path, place: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    before = stamps(root)
    moved = shutil.copytree(place / "terse", tmp_path / "moved")
    runner.run(recipe_of(tmp_path, str(moved)), root)
    assert stamps(root) == before, "the same adapter at another place"
    save_given(moved, seed=2)
    runner.run(recipe_of(tmp_path, {"source": str(tmp_path), "subfolder": "moved"}), root)
    after = stamps(root)
    terse = "lora-terse texts"
    assert {key for key in after if after[key] != before[key]} == {
        *(terse, f"{terse}-answers", "gate", "gate-answers", "evaluate", "report")
    }


@pytest.mark.slow
def test_a_run_may_train_no_adapter_and_have_one_that_no_task_asks_for(tmp_path: Path) -> None:
    source, idle = save_given(tmp_path / "terse"), save_given(tmp_path / "idle", seed=5, r=3)
    settings = ["gate.init=arrow", "gate.balance=0.1", "tasks.haiku.expert=terse texts"]
    recipe = recipe_of(tmp_path, str(source), f"experts.idle={idle}", *settings)
    runner.run(recipe, tmp_path / "run", stage="gate")
    assert set(stamps(tmp_path / "run")) == {
        *("prepare", "lora-terse texts", "lora-idle", "gate", "gate-answers")
    }
    mixture = MixtureModel.from_pretrained(tmp_path / "run" / "cgm" / "models")
    assert mixture.expert_names == ["terse texts", "idle"]
    losses = rows(tmp_path / "run" / "cgm" / "auxiliary.csv")
    assert all(torch.tensor(float(row["supervised"])).isfinite() for row in losses)


@pytest.mark.slow
def test_another_expert_of_a_task_trains_the_gates_anew_and_nothing_else(
    finished: Path, place: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    before = stamps(root)
    recipe = recipe_of(tmp_path, str(place / "terse"), "tasks.spare.expert=terse texts")
    runner.run(recipe, root, stage="gate")
    after = stamps(root)
    redone = {key for key in after if after[key] != before[key]}
    assert redone == {"gate", "gate-answers"}


@pytest.mark.parametrize(
    ("terse", "settings", "problem"),
    [
        ("nowhere/at-all", [], "experts.terse texts: expert 'terse texts': there is no adapter"),
        ({"sorce": "x"}, [], r"unknown key \(did you mean 'source'\?\)"),
        ({"lossy": ["dorra"]}, [], r"no part 'dorra' \(did you mean 'dora'\?\)"),
        ({"revision": "v2"}, [], "which has no revisions"),
        ({"subfolder": "deeper"}, [], "experts.terse texts"),
        ({}, ["base.name=tiny-gpt2"], "expert 'terse texts' adapts .*does not have"),
        ({}, ["gate.mixing=parameter"], "haiku has 4, terse texts has 6; use 'output'"),
        ({}, ["tasks.title.expert=terse text"], r"no expert 'terse text' \(did you mean 'terse te"),
        ({}, ["tasks.title.expert=haiku"], "no expert 'haiku'.*one of `experts`: terse texts"),
        (
            {},
            ["tasks.title.expert=none", "tasks.command.expert=none"],
            "gate.init: 'prototype' .* no task has the expert terse texts",
        ),
        (
            {},
            [f"tasks.{task}.expert=none" for task in ("haiku", "title", "command")],
            "nothing to train the gates on",
        ),
        ({}, ["experts.own=nowhere"], "experts: 'own' cannot be a name"),
        ({}, ["experts.none=nowhere"], "experts: 'none' cannot be a name"),
        ({}, ["experts.haiku=nowhere"], "task 'haiku' trains an expert of this name"),
        ({}, ["experts.haiku-answers=nowhere"], "would be filed as the answers of 'haiku'"),
        ({}, ["gate.activation=top-k", "gate.k=3"], "cannot keep 3 of 2 experts"),
        ({}, ["comparison.mixtures={LoRA terse texts: {}}"], "is another model's name"),
    ],
)
def test_what_cannot_be_run_is_said_before_any_work(
    terse: object, settings: list[str], problem: str, finished: Path, place: Path, tmp_path: Path
) -> None:
    if isinstance(terse, dict):
        terse = {"source": str(place / "terse"), **terse}
    with pytest.raises(RecipeError, match=problem):
        recipe_of(tmp_path, terse, *settings)


def test_one_adapter_under_two_names_is_refused(
    finished: Path, place: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(place / "terse", tmp_path / "copy")
    with pytest.raises(RecipeError, match="it is the same adapter as 'terse texts'"):
        recipe_of(tmp_path, str(place / "terse"), f"experts.b={copy}")
