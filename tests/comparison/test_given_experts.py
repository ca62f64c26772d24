"""Comparisons of given adapters: what runs, what is left out and why, and what is claimed."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import save_given

from loramix.comparison.baselines.shared import with_adapter
from loramix.comparison.compare import compare
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]
SMALL = [
    *("samples=60", "lora.epochs=1", "lora.train_samples=8", "gate.epochs=1"),
    *("gate.train_samples=8", "lora.validation_samples=2", "gate.validation_samples=2"),
    *("comparison.test_samples=2", "comparison.side_samples=2", "comparison.uncached_samples=2"),
    *("comparison.search_samples=2", "comparison.search_steps=6", "comparison.replicates=100"),
    *("comparison.seeds=[0]", "comparison.test_sets=[named, bare]"),
]
RECIPE = """
extends: tiny
name: given
experts:
  v1.5 terse: {source}
tasks:
  - {{use: demo-haiku, name: haiku, max_new_tokens: 4}}
  - {{use: demo-title, name: title, max_new_tokens: 4, expert: v1.5 terse}}
  - {{use: demo-title, name: spare, max_new_tokens: 4, expert: none}}
"""
MODELS = (
    "[base, experts, joint, uniform, static, ties, dare, lorahub, arrow, xlora, oracle, mixtures]"
)
EQUAL = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def recipe_of(place: Path, **settings: object) -> Recipe:
    adapter = save_given(place / "adapter", **settings)
    (place / "given.yaml").write_text(RECIPE.format(source=adapter))
    return load_recipe(str(place / "given.yaml"), [*SMALL, f"comparison.models={MODELS}"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    """Return a recipe with an adapter of other layers, and of more ranks than layers are wide."""
    return recipe_of(place, r=70, use_rslora=True, target_modules=".*(q_proj|up_proj)")


@pytest.fixture(scope="module")
def folder(place: Path, recipe: Recipe) -> Path:
    return compare(recipe, place / "run")


def test_what_can_run_on_any_adapters_runs_and_the_rest_is_left_out_in_words(folder: Path) -> None:
    compared = list(dict.fromkeys(row["model"] for row in rows(folder / "results.csv")))
    assert compared == [
        *("base", "LoRA haiku", "LoRA v1.5 terse", "one LoRA, all tasks", "uniform weights"),
        *("best static weights", "TIES", "DARE", "X-LoRA", "CGM LoRA", "oracle"),
    ]
    page = (folder / "report.html").read_text()
    for name in ("LoraHub", "Arrow", "reference gate"):
        assert f"{name}" in page.partition("Left out")[2]
    assert "haiku has 4, v1.5 terse has 70" in page
    assert "whether they have learned from the test samples" in page


def test_a_task_without_an_expert_has_no_oracle_and_claims_say_so(folder: Path) -> None:
    results = rows(folder / "results.csv")
    assert {row["task"] for row in results if row["model"] == "CGM LoRA"} == {
        *("haiku", "title", "spare", "all")
    }
    oracle = [row for row in results if row["model"] == "oracle"]
    shares = [row for row in oracle if row["task"] == "all"]
    assert {row["measure"] for row in shares} <= {"share_of_gain"}, "of the tasks that have one"
    assert {row["task"] for row in oracle} - {"all"} == {"haiku", "title"}

    def of(model: str) -> list[str]:
        named = [row for row in results if (row["model"], row["test_set"]) == (model, "named")]
        return [row["value"] for row in named if row["task"] == "title"]

    assert of("oracle") == of("LoRA v1.5 terse")
    claims = [
        claim["text"] for claim in json.loads((folder / "results.json").read_text())["verdict"]
    ]
    assert not any(claim.startswith("On spare,") for claim in claims)
    assert any(claim.startswith("On title,") for claim in claims)
    assert "(without spare, which no expert is right for)" in claims[-1]


def test_a_merge_is_no_larger_than_the_layers_it_acts_on(
    recipe: Recipe, place: Path, folder: Path
) -> None:
    merged = json.loads((folder / "ties" / "models" / "adapter_config.json").read_text())
    assert merged["r"] == 64, "of 4 and 70, in layers of width 64"
    run, ids = Run(recipe, place / "run"), torch.arange(5, 15)[None]
    base = run.load_base()
    before = base.model(input_ids=ids).logits
    with with_adapter(base, folder / "ties" / "models") as model:
        assert not torch.allclose(model(input_ids=ids).logits, before)


def test_everything_runs_on_adapters_that_are_alike(tmp_path: Path) -> None:
    folder = compare(recipe_of(tmp_path, **EQUAL), tmp_path / "run")
    compared = {row["model"] for row in rows(folder / "results.csv")}
    assert {"LoraHub", "Arrow", "reference gate", "TIES", "X-LoRA"} <= compared
    assert "Left out" not in (folder / "report.html").read_text()
