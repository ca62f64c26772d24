"""Benchmark: the untouched base model answers the test samples of every task."""

from loramix.bases import load_base
from loramix.recipe import Recipe
from loramix.stages.generation import write_answers
from loramix.stages.layout import Layout


def run(recipe: Recipe, layout: Layout) -> None:
    """Write benchmark/<task>.csv for every task."""
    base = load_base(recipe.base.name, revision=recipe.base.revision, dtype=recipe.base.dtype)
    for task in recipe.tasks:
        write_answers(base.model, base.tokenizer, recipe, layout, folder="benchmark", task=task, label="base")
