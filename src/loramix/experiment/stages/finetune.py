"""Full finetune: every parameter of the base model, one model per task."""

from loramix.bases.loading import load_base, load_tokenizer
from loramix.data.tasks import Task
from loramix.experiment.answers import write_answers
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base, train
from loramix.storage.files import atomic_folder


def learn(recipe: Recipe, layout: Layout, task: Task) -> None:
    """Write the task's model and losses under finetune/<task>."""
    base, folder = recipe_base(recipe, dtype="float32"), layout.folder("finetune", task.name)
    label = f"full finetune, {task.name}"
    train(
        base.model,
        base.tokenizer,
        recipe,
        recipe.finetune,
        [task],
        layout=layout,
        folder=folder,
        label=label,
    )
    with atomic_folder(folder / "models") as models:
        base.model.save_pretrained(models)
        base.tokenizer.save_pretrained(models)


def answer(recipe: Recipe, layout: Layout, task: Task) -> None:
    """Write the model's answers to its own task under finetune/<task>."""
    folder, label = layout.folder("finetune", task.name), f"full finetune, {task.name}"
    model = load_base(str(folder / "models"), dtype=recipe.base.dtype).model
    tokenizer = load_tokenizer(recipe.base.name, revision=recipe.base.revision)
    write_answers(model, tokenizer, recipe, layout, folder=folder, tasks=[task], label=label)
