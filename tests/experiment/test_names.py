"""What `check` accepts runs: names, numbers and limits that would break a run are found before."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramix.errors import LoramixError, RecipeError
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe

SMALL = [
    *("samples=12", "generation.test_samples=2", "gate.init=zero"),
    *("finetune.epochs=1", "lora.epochs=1", "gate.epochs=1"),
    *("tasks.haiku.max_new_tokens=4", "tasks.title.max_new_tokens=4"),
]


def renamed(tmp_path: Path, name: str, *overrides: str) -> list[str]:
    """Return the problems of the recipe `tiny` with another name of a task."""
    recipe = load_recipe("tiny", SMALL)
    content = recipe.model_dump(mode="json")
    content["tasks"][0]["name"] = name
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    try:
        load_recipe(str(tmp_path / "recipe.yaml"), overrides)
    except RecipeError as error:
        return str(error).splitlines()[1:]
    return []


@pytest.mark.parametrize(
    "name", ["losses", "weights", "test_loss", "auxiliary", "routing_steps", "learned_from"]
)
def test_tasks_that_would_replace_files_of_a_run_are_refused(tmp_path: Path, name: str) -> None:
    (problem,) = renamed(tmp_path, name)
    assert f"would replace {name}.csv" in problem


@pytest.mark.parametrize("name", ["x" * 101, "x" * 240, "../x", "a b", "", "title-answers", "ü"])
def test_names_that_no_run_can_file_are_refused(tmp_path: Path, name: str) -> None:
    assert renamed(tmp_path, name)


@pytest.mark.parametrize(
    "override",
    [
        *("seed=4294967296", "seed=-1", "comparison.seeds=[4294967296]", "name=" + "x" * 101),
        *("gate.learning_rate=nan", "lora.alpha=inf", "gate.temperature=.inf", "lora.dropout=nan"),
        *("gate.balance=nan", "generation.repetition_penalty=inf", "gate.hidden=100000000000"),
        *("comparison.mixtures={a: {temperature: .nan}}", "comparison.xlora_learning_rate=.inf"),
    ],
)
def test_numbers_that_are_none_or_too_large_are_refused(override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("tiny", [override])


@pytest.mark.parametrize("override", ["seed=4294967295", "name=" + "x" * 100])
def test_the_largest_are_taken(override: str) -> None:
    load_recipe("tiny", [override])


def test_targets_that_match_no_layer_are_named_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match=r"no linear layer.*'query'.*are .*k_proj.*q_proj"):
        load_recipe("tiny", ["base.name=tiny-llama", "lora.targets=[q_proj, query]"])
    load_recipe("tiny", ["base.name=tiny-llama", "lora.targets=[q_proj, up_proj]"])


def test_prompts_beyond_the_learned_positions_are_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")  # 64 positions
    model.save_pretrained(tmp_path / "base")
    base = f"base.name={tmp_path / 'base'}"
    fits = [
        f"tasks.{task}.max_{kind}" for task in ("haiku", "title") for kind in ("input_tokens=60",)
    ]
    with pytest.raises(RecipeError, match=r"has learned 64 positions.*is 60.*max_new_tokens 8"):
        load_recipe("tiny", [base, *fits, "tasks.haiku.max_new_tokens=8"])
    load_recipe("tiny", [base, *fits, *(f"tasks.{t}.max_new_tokens=4" for t in ("haiku", "title"))])


# --- whatever is accepted runs

NAMES = st.one_of(
    st.text(alphabet="abAB09_-.", min_size=1, max_size=12),
    st.sampled_from(["gate", "cgm", "models", "own", "none", "CON", "prepare", "x" * 100, "haiku"]),
)
DRAWN = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.sampled_from([0, 1, 2**31, 2**32 - 1]),
        "gate.activation": st.sampled_from(["softmax", "sigmoid", "top-k", "top-1"]),
        "gate.context": st.sampled_from(["prompt", "running", "token"]),
        "gate.scope": st.sampled_from(["layer", "block", "model"]),
        "gate.hidden": st.sampled_from([1, 2, 5]),
        "gate.temperature": st.sampled_from([1e-3, 1.0, 1e3]),
        "gate.mixing": st.sampled_from(["output", "parameter"]),
        "gate.init": st.sampled_from(["zero", "prototype", "arrow"]),
        "gate.bare": st.sampled_from([0, 0.5, 1]),
        "gate.balance": st.sampled_from([0, 0.5]),
        "lora.rank": st.sampled_from([1, 3]),
        "lora.dropout": st.sampled_from([0, 0.5]),
        "lora.batch_size": st.sampled_from([1, 7]),
        "lora.accumulation": st.sampled_from([1, 5]),
        "lora.schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "lora.warmup_steps": st.sampled_from([0, 3]),
        "finetune.optimizer": st.sampled_from(["adafactor", "adamw"]),
        "finetune.gradient_checkpointing": st.booleans(),
        "generation.num_beams": st.sampled_from([1, 2]),
        "base.name": st.sampled_from(["tiny-llama", "tiny-gpt2", "tiny-t5"]),
        "base.dtype": st.sampled_from(["float32", "bfloat16"]),
        "base.chat": st.booleans(),
        "samples": st.sampled_from([40, 60]),  # of fewer, a split may be empty, as the data has it
    },
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(changes=DRAWN, name=NAMES)
def test_what_check_accepts_runs(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    recipe = load_recipe("tiny", SMALL).model_dump(mode="json")
    recipe["tasks"][0]["name"] = name
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    overrides = [f"{key}={yaml.safe_dump(value).split()[0]}" for key, value in changes.items()]
    try:
        accepted = load_recipe(str(file), overrides)
    except LoramixError:
        return
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    runner.run(accepted, tmp_path / "run")
