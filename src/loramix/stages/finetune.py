"""Full finetune: every parameter of the base model, one model per task."""

from loramix.atomic import atomic_folder
from loramix.bases import load_base
from loramix.recipe import Recipe
from loramix.stages.generation import write_answers
from loramix.stages.layout import Layout
from loramix.stages.training import train
from loramix.tasks import Task


def run(recipe: Recipe, layout: Layout, task: Task) -> None:
    """Write the task's model, losses and answers to every task under finetune/<task>."""
    base = load_base(recipe.base.name, revision=recipe.base.revision, dtype=recipe.base.dtype)
    folder = layout.folder("finetune", task.name)
    label = f"full finetune, {task.name}"
    train(base.model, base.tokenizer, recipe, recipe.finetune, [task], layout=layout, folder=folder, label=label)
    with atomic_folder(folder / "models") as models:
        base.model.save_pretrained(models)
        base.tokenizer.save_pretrained(models)
    write_answers(base.model, base.tokenizer, recipe, layout, folder=f"finetune/{task.name}", task=task, label=label)
