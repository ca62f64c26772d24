"""Full finetune: every parameter of the base model, one model per task."""

from loramix.bases.loading import load_tokenizer
from loramix.data.tasks import Task
from loramix.experiment.answers import write_answers
from loramix.experiment.labels import FINETUNE, label
from loramix.experiment.processes import processes
from loramix.experiment.run import MODELS, Run
from loramix.experiment.training.trainer import train
from loramix.storage.files import atomic_folder


def learn(run: Run, task: Task) -> None:
    """Write the task's model and losses under finetune/<task>."""
    # small updates of the weights would be rounded away in a 16-bit format
    base, folder = run.load_whole_base(), run.folder("finetune", task.name)
    train(
        run,
        base.model,
        base.tokenizer,
        run.recipe.finetune,
        [task],
        folder=folder,
        label=f"{label(FINETUNE)}, {task.name}",
    )
    if not processes().first:
        return
    with atomic_folder(folder / MODELS) as models:
        base.model.save_pretrained(models)
        base.tokenizer.save_pretrained(models)


def answer(run: Run, task: Task) -> None:
    """Write the model's answers to its own task under finetune/<task>."""
    folder, base = run.folder("finetune", task.name), run.recipe.base
    model = run.load_trained_base(folder / MODELS).model
    tokenizer = load_tokenizer(base.name, revision=base.revision)
    title = f"{label(FINETUNE)}, {task.name}"
    write_answers(run, model, tokenizer, folder=folder, tasks=[task], label=title)
