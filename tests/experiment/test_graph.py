"""The stage graph: every setting reaches the steps that depend on it, and finished runs stay done.

A step is skipped while its settings are the same. A field that no step has would leave a stage
wrongly "already done" when it changes.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from loramix.comparison.compare import comparison_steps
from loramix.comparison.comparison import Comparison
from loramix.data.tasks import Task
from loramix.experiment.graph import Step, run_steps
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.experiment.runner import fingerprint, pin

RECIPE = load_recipe("tiny")
ALONE = load_recipe("tiny", ["gate.first_pass=false"])  # gates that may read and carry anything
SOURCES = {"haiku": "the haikus", "title": "the titles"}
FINGERPRINTS = Path(__file__).with_name("tiny_fingerprints.json")

# No step of a run has these, rightly: a run answers its tasks' own prompts only, and compares
# nothing. Steps of a comparison have them, without exception.
OF_COMPARISONS = ("comparison.", "tasks.paraphrases", "tasks.inverse")

# Where a value that is made up would not do.
OTHER_VALUES: dict[str, object] = {
    "base.name": "tiny-gpt2",
    "tasks.expert": "none",
    "comparison.mixtures": {"CGM LoRA": {}},
}


def of_run(recipe: Recipe) -> list[Step]:
    return run_steps(Run(recipe, Path("nowhere")), SOURCES)


def of_comparison(recipe: Recipe) -> list[Step]:
    return comparison_steps(Comparison(Run(recipe, Path("nowhere"))), SOURCES)


def fingerprints(steps: list[Step]) -> dict[str, str]:
    known: dict[str, str] = {}
    for step in steps:
        known[step.key] = fingerprint(step, known)
    return known


@cache
def unchanged(of: Callable[[Recipe], list[Step]]) -> dict[str, str]:
    return fingerprints(of(ALONE))


def fields(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Yield every field of a recipe, those of its parts and of its tasks with a dotted name."""
    for name, field in model.model_fields.items():
        part = Task if name == "tasks" else field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from fields(part, f"{before}{name}.")
        else:
            yield before + name


def changed(model: BaseModel, path: str, whole: str) -> BaseModel:
    """Return the settings with another value of one field; of tasks, of the first one."""
    name, _, rest = path.partition(".")
    value = getattr(model, name)
    if name == "tasks":
        value = (changed(value[0], rest, whole), *value[1:])
    elif rest:
        value = changed(value, rest, whole)
    elif whole in OTHER_VALUES:
        value = OTHER_VALUES[whole]
    else:
        value = other_value(value, type(model).model_fields[name].annotation)
    return model.model_copy(update={name: value})


def other_value(value: object, annotation: object) -> object:
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, str):
        return f"{value}-2"
    if isinstance(value, tuple) and value:
        return value[:-1]
    kinds = get_args(annotation)  # of a value that may be None, or of an empty tuple
    return 7 if int in kinds else "another" if str in kinds else ("another",)


# Of given adapters, the files count: see `test_given.py`. Where a base lies changes nothing.
ELSEWHERE = {"experts", "base.device_map"}


@pytest.mark.parametrize("field", [field for field in fields(Recipe) if field not in ELSEWHERE])
def test_every_setting_changes_the_steps_that_depend_on_it(field: str) -> None:
    recipe = changed(ALONE, field, field)
    assert isinstance(recipe, Recipe)
    assert fingerprints(of_comparison(recipe)) != unchanged(of_comparison)
    same = fingerprints(of_run(recipe)) == unchanged(of_run)
    assert same == field.startswith(OF_COMPARISONS)


def test_another_prompt_needs_no_other_data_and_another_metric_no_other_answers() -> None:
    before = fingerprints(of_run(RECIPE))

    def redone(field: str) -> set[str]:
        after = fingerprints(of_run(changed(RECIPE, field, field)))
        return {key for key in after if after[key] != before[key]}

    assert redone("tasks.split") == set(before)
    assert redone("tasks.prompt") == set(before) - {
        *("prepare", "finetune-title", "finetune-title-answers"),
        *("lora-title",),
    }
    assert redone("tasks.metrics") == {"evaluate", "report"}
    assert redone("name") == {"report"}


def test_finished_runs_of_earlier_versions_stay_done() -> None:
    """The fingerprints are those that run folders hold: a change of any redoes finished work.

    Where that is wanted, write the new ones into the file.
    """
    found = fingerprints([*of_run(RECIPE), *of_comparison(RECIPE)])
    assert found == json.loads(FINGERPRINTS.read_text())


def test_gates_with_the_settings_of_earlier_versions_stay_done() -> None:
    earlier = ["gate.init=mean", "gate.rates=equal", "gate.keep_start=false"]
    earlier.append("gate.learning_rate=3e-3")
    found = fingerprints(of_run(load_recipe("tiny", earlier)))
    assert found["gate"] == "32437e3463a93747597f1a25bcf8c8e92e230617588bdbdeee89041e92dbf8bd"


@pytest.mark.parametrize(
    ("metrics", "whitespace"), [(["rouge", "haiku"], "lines"), (["rouge"], "collapse")]
)
def test_a_folder_of_an_earlier_version_goes_on_with_its_white_space(
    metrics: list[str], whitespace: str, tmp_path: Path
) -> None:
    """Its samples were made before it could be chosen, and are called what they are."""
    task = {"name": "t", "source": __file__, "input_column": "a", "target_column": "b"}
    settings = {
        "name": "a",
        "base": {"name": "tiny-llama"},
        "tasks": [{**task, "metrics": metrics}],
    }
    recipe = Recipe.model_validate(settings)
    began = tmp_path / "recipe.yaml"
    assert pin(recipe, began).tasks[0].cleaning.whitespace == "keep"
    began.write_text(recipe.to_yaml(), encoding="utf-8")
    assert pin(recipe, began).tasks[0].cleaning.whitespace == "keep"
    began.write_text(recipe.to_yaml().replace("    whitespace: keep\n", ""), encoding="utf-8")
    pinned = pin(recipe, began)
    assert pinned.tasks[0].cleaning.whitespace == whitespace
    assert "whitespace" not in json.dumps([step.settings for step in of_run(pinned)], default=str)
    chosen = {**task, "metrics": metrics, "cleaning": {"whitespace": "keep"}}
    asked = Recipe.model_validate({**settings, "tasks": [chosen]})
    assert pin(asked, began).tasks[0].cleaning.whitespace == "keep"
    assert fingerprints(of_run(asked))["prepare"] != fingerprints(of_run(pinned))["prepare"]
