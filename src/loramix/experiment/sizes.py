"""What a run's models hold, and what it writes: counted without loading any weights."""

import shutil
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.errors import OutputError, StageError
from loramix.experiment.given import bare_base, given_layers
from loramix.experiment.graph import Step
from loramix.experiment.recipe import Recipe, TrainSpec
from loramix.experiment.stages.lora import attention_layers
from loramix.mixture.groups import roles
from loramix.mixture.linear import linear_shape
from loramix.mixture.wrapping import new_gates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHECKPOINTS = 3  # the best, the last, and the one that is being written
_OPTIMIZER = {"adamw": 2, "adafactor": 0.1}  # numbers that it keeps for every parameter
_FLOAT32 = 4  # bytes
_ELSE = 20e6  # bytes: samples, answers, tables and plots


@dataclass(frozen=True)
class Sizes:
    """Parameters of the base, of one trained adapter in so many layers, and of all gates."""

    base: int
    adapter: int
    layers: int
    gates: int


def sizes(recipe: Recipe, base: "PreTrainedModel") -> Sizes:
    """Count the parameters of a recipe's models.

    base: with or without its weights.
    """
    base.tie_weights()
    targets = recipe.lora.targets or attention_layers(base)
    shapes = {
        name: shape
        for name, module in base.named_modules()
        if name.rpartition(".")[2] in targets and (shape := linear_shape(module))
    }
    layers = given_layers(recipe, base) | (set(shapes) if recipe.trained else set())
    planned = roles(base, layers, recipe.gate.scope, None)
    modules = new_gates(base, planned, recipe.gate.config, len(recipe.expert_names)).values()
    return Sizes(
        base=sum(parameter.numel() for parameter in base.parameters()),
        adapter=sum(recipe.lora.rank * (wide + out) for wide, out in shapes.values()),
        layers=len(shapes),
        gates=sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad),
    )


def check_room(
    root: Path, plans: Sequence[tuple[Recipe, Sequence[Step]]], *, side_by_side: bool = False
) -> None:
    """Raise OutputError if the disk has less room than the steps of these recipes are likely to
    take.

    side_by_side: whether all trainings may be under way at once, and not one after the other.
    """
    trained: set[str] = set()
    kept, training = 0.0, [0.0]
    for recipe, steps in plans:
        stages = {step.stage for step in steps if step.scratch}
        base = bare_base(recipe.base) if stages else None
        if base is not None:
            trained |= stages
            stays, checkpoints = _bytes(recipe, sizes(recipe, base), steps)
            kept, training = kept + stays, [*training, *checkpoints]
    needed = kept + (sum(training) if side_by_side else max(training))
    place = next(each for each in (root, *root.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(place).free
    if trained and free < needed:
        raise OutputError(
            f"{root} needs about {needed / 1e6:,.0f} MB for {', '.join(sorted(trained))}, and the "
            f"disk has {free / 1e6:,.0f} MB left; make room, or choose another folder with --out"
        )


def refuse_uneven(recipe: Recipe, stages: Container[str], processes: int) -> None:
    """Raise StageError if so many processes cannot share the batches of these stages evenly."""
    specs = {"finetune": recipe.finetune, "lora": recipe.lora, "gate": recipe.gate}
    sizes = {stage: spec.batch_size for stage, spec in specs.items() if stage in stages}
    uneven = {stage: size for stage, size in sizes.items() if size % processes}
    if uneven:
        found = ", ".join(f"{stage}.batch_size is {size}" for stage, size in uneven.items())
        helps = " ".join(
            f"{stage}.batch_size={-(-size // processes) * processes}"
            for stage, size in uneven.items()
        )
        raise StageError(
            f"{found}, and {processes} processes share every batch evenly; start as many as "
            f"divide it, or choose another size, such as: {helps}"
        )


def _bytes(recipe: Recipe, found: Sizes, steps: Sequence[Step]) -> tuple[float, list[float]]:
    """Return what stays of all steps, and what each needs while it trains."""
    width = _FLOAT32 if recipe.base.dtype == "float32" else 2
    experts = len(recipe.expert_names) * found.adapter * _FLOAT32
    stays = {  # in bytes
        "finetune": found.base * width,
        "lora": found.adapter * _FLOAT32,
        "gate": found.gates * _FLOAT32 + experts,
    }
    learned: dict[str, tuple[int, TrainSpec]] = {
        "finetune": (found.base, recipe.finetune),
        "lora": (found.adapter, recipe.lora),
        "gate": (found.gates, recipe.gate),
    }
    kept, training = _ELSE, []
    for step in steps:
        if step.scratch is not None and step.stage in learned:
            numbers, spec = learned[step.stage]
            checkpoint = numbers * _FLOAT32 * (1 + _OPTIMIZER[spec.optimizer])
            kept += stays[step.stage]
            training.append(float(_CHECKPOINTS * checkpoint))
    return kept, training
