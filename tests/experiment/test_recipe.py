"""Recipes are checked as a whole, before any work."""

from pathlib import Path
from typing import Any

import pytest

from loramix import GateConfig
from loramix.errors import RecipeError
from loramix.experiment.reading import load_recipe, shipped
from loramix.experiment.recipe import Recipe


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            "tiny",
            [
                "gate.hiden=3",
                "tasks.haiku.sampels=4",
                "lora.rank=0",
                "nonsense",
                "base.name=tiny-lama",
            ],
        )
    text = str(caught.value)
    for expected in (
        "gate.hiden",
        "'hidden'",
        "sampels",
        "'samples'",
        "lora.rank",
        "greater than or equal to 1",
        "nonsense",
    ):
        assert expected in text


def test_an_unknown_base_and_a_missing_file_are_found_before_any_work() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            "tiny", ["base.name=./no-such-model", "tasks.title.source=no-such-file.parquet"]
        )
    assert "no-such-model" in str(caught.value)
    assert "no-such-file.parquet" in str(caught.value)


def test_unknown_recipes_and_tasks_get_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        load_recipe("demmo")
    file = tmp_path / "r.yaml"
    file.write_text("name: r\ntasks: [demo-hiku]\n")
    with pytest.raises(RecipeError, match="did you mean 'demo-haiku'"):
        load_recipe(str(file))


def test_overrides_reach_nested_settings_and_tasks_by_name() -> None:
    recipe = load_recipe(
        "tiny", ["gate.learning_rate=1e-2", "tasks.haiku.max_new_tokens=7", "samples=50"]
    )
    assert recipe.gate.learning_rate == 0.01
    assert recipe.tasks[0].max_new_tokens == 7
    assert recipe.samples == 50


def test_a_resolved_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    file = tmp_path / "again.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(str(file)) == recipe


def test_the_reference_recipe_holds_the_reference_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramix.experiment.reading.recipe_problems", lambda recipe: [])
    recipe = load_recipe("haiku-title-t5-large")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.learning_rate) == (16, 1, 1e-3)
    assert (recipe.finetune.learning_rate, recipe.finetune.epochs, recipe.finetune.patience) == (
        3e-4,
        25,
        5,
    )
    assert (recipe.gate.learning_rate, recipe.gate.hidden, recipe.gate.train_samples) == (
        3e-3,
        4,
        4096,
    )
    assert recipe.samples == 26707


@pytest.mark.parametrize("name", sorted(shipped()))
@pytest.mark.usefixtures("without_fetching")
def test_every_shipped_recipe_can_be_read(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.mixtures()


def test_a_recipe_holds_what_it_changes_in_another(tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: tiny\nname: child\ngate: {hidden: 3}\n")
    (tmp_path / "grandchild.yaml").write_text(
        "extends: child.yaml\nname: g\ncomparison: {seeds: [4], mixtures: {wide: {hidden: 9, "
        "activation: sigmoid}}}\n"
    )
    recipe, parent = load_recipe(str(tmp_path / "grandchild.yaml")), load_recipe("tiny")
    assert (recipe.lora, recipe.tasks, recipe.gate.epochs) == (
        parent.lora,
        parent.tasks,
        parent.gate.epochs,
    )
    assert recipe.gate.hidden == 3
    assert list(recipe.mixtures()) == ["wide"]
    assert (recipe.mixtures()["wide"].hidden, recipe.mixtures()["wide"].activation) == (
        9,
        "sigmoid",
    )
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml\nname: l\n")
    with pytest.raises(RecipeError, match="extends it in turn"):
        load_recipe(str(tmp_path / "loop.yaml"))


def test_the_reference_gate_of_a_comparison_is_the_references() -> None:
    recipe = load_recipe(
        "tiny",
        ["gate.activation=sigmoid", "gate.temperature=0.5", "gate.bare=0.5", "gate.epochs=3"],
    )
    gate = recipe.mixtures()["reference gate"]
    assert gate.config == GateConfig.reference()
    assert (gate.epochs, gate.bare) == (3, 0.0)


@pytest.mark.parametrize(
    ("mixtures", "problem"),
    [
        (
            "{ours: {hiden: 3}}",
            r"comparison.mixtures.ours.hiden: unknown key \(did you mean 'hidden'\?\)",
        ),
        (
            "{ours: {hidden: 0}}",
            "comparison.mixtures.ours.hidden: Input should be greater than or equal to 1",
        ),
        (
            "{ours: {init: prototype, hidden: 1}}",
            "comparison.mixtures.ours.hidden: init 'prototype' of 2 experts needs 2 hidden units",
        ),
        ("{oracle: {}}", "'oracle' is another model's name"),
    ],
)
def test_mixtures_of_a_comparison_are_checked_before_any_work(mixtures: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe("tiny", [f"comparison.mixtures={mixtures}"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["gate.activation=top-k", "gate.k=3"],
            "gate.k: cannot keep 3 of 2 experts; use k=2 or less",
        ),
        (
            ["gate.init=arrow", "gate.hidden=3"],
            "gate.hidden: init 'arrow' of 2 experts needs 4 hidden units in every gate",
        ),
        (
            ["gate.init=arrow", "base.name=tiny-t5"],
            "use init 'prototype' (from_examples)",
        ),
        (["gate.context=reference"], "gate.context"),
        (["gate.activation=sigmoid", "gate.base_slot=true"], "base_slot"),
        (["gate.first_pass=true", "gate.context=running"], "set first_pass=False"),
        (["gate.first_pass=true", "gate.carry=true"], "set first_pass=False"),
        (["gate.activaton=sigmoid"], "did you mean 'activation'?"),
    ],
)
def test_gates_that_could_not_be_trained_are_found_before_any_work(
    settings: list[str], problem: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("tiny", settings)
    assert problem in str(error.value)


ATTENDING = {"first_pass": True, "pooling": "attention", "scope": "block"}


@pytest.mark.parametrize(
    ("settings", "gates"),
    [
        (["gate.temperature=0.5"], {**ATTENDING, "temperature": 0.5}),
        (["gate.scope=model"], {**ATTENDING, "scope": "model"}),
        (["gate.pooling=mean"], {"first_pass": True}),
        (["gate.first_pass=false"], {}),
        (["gate.first_pass=false", "gate.pooling=attention"], {**ATTENDING, "first_pass": False}),
        (["gate.carry=true"], {"carry": True}),
        (["gate.context=running"], {"context": "running"}),
        (["gate.init=mean"], {}),
        (["gate.init=zero", "gate.first_pass=true"], {"first_pass": True}),
    ],
)
def test_gates_that_start_from_prompts_decide_together_unless_told_otherwise(
    settings: list[str], gates: dict[str, Any]
) -> None:
    """What follows from a setting does so in a run, in a mixture of a comparison, and when the
    resolved recipe is read again.
    """
    recipe = load_recipe("tiny", settings)
    assert recipe.gate.config == GateConfig(**gates)
    changes = dict(setting.removeprefix("gate.").split("=") for setting in settings)
    mixture = f"comparison.mixtures={{changed: {{{', '.join(map(': '.join, changes.items()))}}}}}"
    compared = load_recipe("tiny", [mixture])
    assert compared.mixtures()["changed"].config == GateConfig(**gates)
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert Recipe.model_validate(compared.model_dump()).mixtures() == compared.mixtures()


@pytest.mark.parametrize(
    "told",
    [
        {"first_pass": False},
        {"first_pass": False, "pooling": "attention"},
        {"first_pass": False, "pooling": "attention", "scope": "layer"},
        {"pooling": "mean", "scope": "block"},
        {"scope": "model"},
    ],
)
def test_what_a_recipe_tells_its_gates_holds_in_its_comparison(told: dict[str, Any]) -> None:
    settings = [f"gate.{name}={str(value).lower()}" for name, value in told.items()]
    recipe = load_recipe("tiny", [*settings, "comparison.mixtures={softer: {temperature: 2}}"])
    softer = recipe.gate.config.model_copy(update={"temperature": 2})
    assert recipe.mixtures()["softer"].config == softer


RECIPE = "name: r  # für später\nbase: {name: tiny-llama}\ntasks: [demo-haiku, demo-title]\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_recipes_with_a_byte_order_mark_are_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, encoding=encoding)
    assert load_recipe(str(tmp_path / "r.yaml")).name == "r"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (RECIPE.encode("cp1252"), "r.yaml: line 1 is not in UTF-8: byte 0xfc.*save it as UTF-8"),
        (RECIPE.encode("utf-16-le"), "r.yaml: line 1 holds a NUL character.*save it as UTF-8"),
        (b"name: r\nbase:\n\tname: tiny-llama\n", "(?s)no valid YAML.*line 3"),
        (b"name: 2025-13-45\n", "no valid YAML: month must be in 1..12"),
    ],
)
def test_recipes_of_other_encodings_are_refused_in_words(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=problem):
        load_recipe(str(tmp_path / "r.yaml"))
