"""Benchmark: the untouched base model answers the test samples of every task."""

from loramix.experiment.answers import write_answers
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base


def answer(recipe: Recipe, layout: Layout) -> None:
    """Write benchmark/<task>.csv for every task, and test_loss.csv."""
    base = recipe_base(recipe)
    folder = layout.folder("benchmark")
    write_answers(
        base.model, base.tokenizer, recipe, layout, folder=folder, tasks=recipe.tasks, label="base"
    )
