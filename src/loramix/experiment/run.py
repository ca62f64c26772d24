"""Where a run keeps what: the folders of its stages, and which model wrote which answers."""

from dataclasses import dataclass
from pathlib import Path

from loramix.experiment.recipe import Recipe
from loramix.report.content import LossRow
from loramix.storage.files import read_csv

CHECKPOINTS = "checkpoints"  # in the folder of a model, while it is trained
ANSWER_COLUMNS = ("input", "generated", "reference")
LOSS_COLUMNS = ("step", "epoch", "training", "validation")
TEST_LOSS, TEST_LOSS_COLUMNS = "test_loss.csv", ("task", "loss")
ROUTING_STEPS, ROUTING_STEP_COLUMNS = "routing_steps.csv", ("step", "task", "expert", "weight")
WEIGHT_COLUMNS = ("layer", "task", "expert", "weight")


@dataclass(frozen=True)
class Layout:
    """The run folder of a recipe."""

    root: Path

    @property
    def manifest(self) -> Path:
        """All samples of all tasks, with their splits."""
        return self.root / "data" / "samples.parquet"

    @property
    def tokens(self) -> Path:
        """The samples as token ids, for every way of asking that a model is trained with."""
        return self.root / "data" / "tokens"

    def folder(self, stage: str, task: str | None = None) -> Path:
        """Return a stage's folder; finetune and lora have one for every task."""
        folder = self.root / {"prepare": "data", "gate": "cgm"}.get(stage, stage)
        return folder / task if task else folder

    def models(self, recipe: Recipe) -> dict[str, dict[str, Path]]:
        """Return the folder with every model's answers to every task that it answers, in the order
        of the tables.
        """
        tasks = [task.name for task in recipe.tasks]
        folders = {"base": dict.fromkeys(tasks, self.folder("benchmark"))}
        folders["full finetune"] = {task: self.folder("finetune", task) for task in tasks}
        for expert in tasks:
            folders[f"LoRA {expert}"] = dict.fromkeys(tasks, self.folder("lora", expert))
        folders["CGM LoRA"] = dict.fromkeys(tasks, self.folder("gate"))
        return folders

    def losses(self, recipe: Recipe) -> dict[str, Path]:
        """Return the loss CSV of every trained model."""
        tasks = [task.name for task in recipe.tasks]
        files = {
            f"full finetune, {task}": self.folder("finetune", task) / "losses.csv" for task in tasks
        }
        files |= {f"LoRA {task}": self.folder("lora", task) / "losses.csv" for task in tasks}
        return {**files, "gates of CGM LoRA": self.folder("gate") / "losses.csv"}


def read_losses(path: Path) -> list[LossRow]:
    """Return the rows of a losses.csv."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    return [
        LossRow(
            int(row["step"]),
            float(row["epoch"]),
            number(row["training"]),
            number(row["validation"]),
        )
        for row in read_csv(path)
    ]
