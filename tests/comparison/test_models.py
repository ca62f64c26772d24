"""The models of a comparison: which there are, which are left out, and their names."""

from pathlib import Path
from typing import get_args

import pytest

from loramix.comparison.baselines import BASELINES
from loramix.comparison.comparison import Comparison
from loramix.comparison.models import compared_models
from loramix.errors import RecipeError
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import ModelName
from loramix.experiment.run import Run


def test_every_model_of_a_recipe_is_known_to_the_comparison() -> None:
    of_run = {"base", "finetune", "experts", "oracle", "mixtures"}
    assert of_run | set(BASELINES) == set(get_args(ModelName))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_that_fits_says_what_it_leaves(name: str) -> None:
    baseline, recipe = BASELINES[name], load_recipe("tiny")
    assert baseline.label
    assert (baseline.fit is None) == (not baseline.leaves)
    assert (baseline.fit is None) == (not baseline.settings(recipe))


def test_no_mixture_takes_the_name_of_a_baseline() -> None:
    recipe = load_recipe("tiny", ["comparison.mixtures={TIES: {}}"])
    with pytest.raises(RecipeError, match="'TIES' is the name of another model"):
        compared_models(Comparison(Run(recipe, Path("nowhere"))))


def test_no_two_models_share_a_folder() -> None:
    recipe = load_recipe("tiny", ["comparison.mixtures={so wide: {}, so-wide: {hidden: 9}}"])
    with pytest.raises(RecipeError, match="'so-wide' and 'so wide' would be filed in one folder"):
        compared_models(Comparison(Run(recipe, Path("nowhere"))))


def test_x_lora_is_left_out_where_it_does_not_run() -> None:
    recipe = load_recipe("tiny", ["base.name=tiny-t5"])
    found, left_out = compared_models(Comparison(Run(recipe, Path("nowhere"))))
    assert "X-LoRA" not in {each.label for each in found}
    assert left_out == ["PEFT's X-LoRA does not load adapters of t5 models"]
