"""Benchmark: the untouched base model answers the test samples of every task."""

from loramix.experiment.answers import write_answers
from loramix.experiment.labels import BASE, label
from loramix.experiment.run import Run


def answer(run: Run) -> None:
    """Write benchmark/<task>.csv for every task, and test_loss.csv."""
    base, tasks = run.load_base(), run.recipe.tasks
    folder = run.folder("benchmark")
    write_answers(run, base.model, base.tokenizer, folder=folder, tasks=tasks, label=label(BASE))
