"""A run: a recipe in its run folder, and the questions that its stages ask of both."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from loramix.bases.devices import accelerator
from loramix.bases.loading import Base, load_base
from loramix.bases.spreading import Quantisation, refuse_offloaded
from loramix.data.samples import Sample, read_manifest
from loramix.data.tasks import Split, Task
from loramix.experiment.labels import BASE, FINETUNE, MIXTURE, expert_key, label
from loramix.experiment.recipe import Recipe, TrainSpec
from loramix.report.content import LossRow
from loramix.storage.experts import Expert, load_expert
from loramix.storage.files import path_part, read_csv

CHECKPOINTS = "checkpoints"  # in the folder of a model, while it is trained
MODELS = "models"  # in the folder of a model: what training left
ANSWER_COLUMNS = ("input", "generated", "reference")
LOSSES, LOSS_COLUMNS = "losses.csv", ("step", "epoch", "training", "validation")
TEST_LOSS, TEST_LOSS_COLUMNS = "test_loss.csv", ("task", "loss")
GATE_CHECK = "gates.csv"  # see `loramix.experiment.training.gate_check`
ROUTING_STEPS, ROUTING_STEP_COLUMNS = "routing_steps.csv", ("step", "task", "expert", "weight")
WEIGHTS, WEIGHT_COLUMNS = "weights.csv", ("layer", "task", "expert", "weight")


class Manifest:
    """The samples of all tasks in their order, by task and split."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        self._parts: dict[tuple[str, Split], list[Sample]] = defaultdict(list)
        for sample in samples:
            self._parts[sample.task, sample.split].append(sample)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def of(self, task: Task, split: Split) -> list[Sample]:
        """Return the samples of one split of a task."""
        return list(self._parts.get((task.name, split), ()))


@dataclass(frozen=True)
class Run:
    """A recipe in its run folder `root`."""

    recipe: Recipe
    root: Path

    def changed(self, **settings: object) -> "Run":
        """Return the run with other settings of its recipe, in the same folder and on the same
        samples.
        """
        return replace(self, recipe=self.recipe.model_copy(update=settings))

    def folder(self, stage: str, part: str | None = None) -> Path:
        """Return a stage's folder; finetune has one for every task, lora one for every expert."""
        # not the stages' names: finished run folders have these
        folder = self.root / {"prepare": "data", "gate": "cgm"}.get(stage, stage)
        return folder / path_part(part) if part else folder

    @property
    def manifest_file(self) -> Path:
        """The samples of all tasks, with their splits."""
        return self.folder("prepare") / "samples.parquet"

    @property
    def token_folder(self) -> Path:
        """The samples as token ids, for every way of asking that a model is trained with."""
        return self.folder("prepare") / "tokens"

    @cached_property
    def manifest(self) -> Manifest:
        """The samples that the stage prepare has left, read once."""
        return Manifest(read_manifest(self.manifest_file))

    def test_samples(self, task: Task) -> list[Sample]:
        """Return the withheld samples of a task: the same ones for every model."""
        return self.manifest.of(task, "test")[: self.recipe.generation.test_samples]

    def training_samples(
        self, spec: TrainSpec, tasks: Sequence[Task]
    ) -> dict[Split, list[list[Sample]]]:
        """Return the samples of every task that `spec` trains and validates on, by split."""
        train = [self.manifest.of(task, "train")[: spec.train_samples] for task in tasks]
        validation = [
            self.manifest.of(task, "validation")[: spec.validation_samples] for task in tasks
        ]
        return {"train": train, "validation": validation}

    def load_base(self) -> Base:
        """Return the base, on the accelerator if there is one, or as the recipe spreads it."""
        spec = self.recipe.base
        return self._placed(spec.name, revision=spec.revision, quantisation=spec.quantisation)

    def load_whole_base(self) -> Base:
        """Return the base in float32 and not quantised, for a training of all its weights."""
        spec = self.recipe.base
        base = self._placed(spec.name, revision=spec.revision, dtype="float32")
        refuse_offloaded(base.model, "training or merging in whole weights")
        return base

    def load_trained_base(self, folder: Path) -> Base:
        """Return a base with weights of its own, in the recipe's number format."""
        return self._placed(str(folder))

    def _placed(
        self,
        name: str,
        *,
        revision: str | None = None,
        dtype: str | None = None,
        quantisation: Quantisation | None = None,
    ) -> Base:
        spec = self.recipe.base
        base = load_base(
            name,
            revision=revision,
            dtype=dtype or spec.dtype,
            device_map=spec.device_map,
            quantisation=quantisation,
        )
        if spec.device_map is None and quantisation is None:
            base.model.to(accelerator())
        return base

    def adapter(self, expert: str) -> Path:
        """Return the folder of an expert's adapter: as it was trained, or as it was given."""
        return self.folder("lora", expert) / MODELS

    def experts(self) -> list[Expert]:
        """Return all experts in their order, the given ones with the places they came from."""
        experts = []
        for name in self.recipe.expert_names:
            expert, given = load_expert(name, self.adapter(name)), self.recipe.experts.get(name)
            if given is not None:
                expert = replace(
                    expert, source=given.place, revision=given.revision, lossy=given.lossy
                )
            experts.append(expert)
        return experts

    def answer_folders(self) -> dict[str, dict[str, Path]]:
        """Return the folders of the answers, by model and then by the tasks that it answers.

        Models go by their keys, in the order of the tables.
        """
        tasks = [task.name for task in self.recipe.tasks]
        folders = {BASE: dict.fromkeys(tasks, self.folder("benchmark"))}
        folders[FINETUNE] = {task: self.folder("finetune", task) for task in tasks}
        for expert in self.recipe.expert_names:
            folders[expert_key(expert)] = dict.fromkeys(tasks, self.folder("lora", expert))
        folders[MIXTURE] = dict.fromkeys(tasks, self.folder("gate"))
        return folders

    def loss_files(self) -> dict[str, Path]:
        """Return the loss CSV of every training, by its label."""
        tasks = [task.name for task in self.recipe.tasks]
        files = {
            f"{label(FINETUNE)}, {task}": self.folder("finetune", task) / LOSSES for task in tasks
        }
        for task in self.recipe.trained:
            files[label(expert_key(task.name))] = self.folder("lora", task.name) / LOSSES
        return {**files, f"gates of {label(MIXTURE)}": self.folder("gate") / LOSSES}


def read_losses(path: Path) -> list[LossRow]:
    """Return the rows of a losses.csv."""
    rows = []
    for row in read_csv(path):
        # an empty cell: this step measured the other loss alone
        training, validation = (
            float(row[key]) if row[key] else None for key in ("training", "validation")
        )
        rows.append(LossRow(int(row["step"]), float(row["epoch"]), training, validation))
    return rows


def gates_stayed(gate_check: Path) -> bool:
    """Return whether gates are where they started, as training has not helped them.

    gate_check: the file; a run of an earlier version has none, and its gates are the trained ones.
    """
    return gate_check.is_file() and not all(int(row["kept"]) for row in read_csv(gate_check))
