"""All experts merged into one adapter, by PEFT: TIES (Yadav et al. 2023, arXiv:2306.01708) and DARE
(Yu et al. 2023, arXiv:2311.03099).

Both act on the experts' whole updates B A, not on the matrices one by one, and the result is cut
back to an adapter of the experts' ranks together. Every expert has weight 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel

from loramix.bases.loading import Base
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base
from loramix.storage.files import atomic_folder

Merge = Literal["ties", "dare"]
_WAYS: dict[Merge, str] = {"ties": "ties_svd", "dare": "dare_ties_svd"}


def merge(recipe: Recipe, layout: Layout, folder: Path, *, way: Merge) -> None:
    """Write the merged adapter to `folder`/models."""
    base = recipe_base(recipe, dtype="float32")
    first, *others = [task.name for task in recipe.tasks]
    model = PeftModel.from_pretrained(base.model, _adapter(layout, first), adapter_name=first)
    for name in others:
        model.load_adapter(_adapter(layout, name), adapter_name=name)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # DARE drops at random
        model.add_weighted_adapter(
            [first, *others],
            [1.0] * len(recipe.tasks),
            "merged",
            combination_type=_WAYS[way],
            density=recipe.comparison.density,
            svd_rank=recipe.lora.rank * len(recipe.tasks),
        )
    with atomic_folder(folder / "models") as models:
        model.save_pretrained(models, selected_adapters=["merged"], save_embedding_layers=False)
        for file in (
            models / "merged"
        ).iterdir():  # PEFT puts an adapter of this name into a folder of this name
            file.rename(models / file.name)
        (models / "merged").rmdir()


@contextmanager
def with_adapter(base: Base, folder: Path) -> Iterator[PeftModel]:
    """Yield the base with one adapter, in the base's number format, as a mixture computes with its
    experts.
    """
    yield PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False)


def _adapter(layout: Layout, task: str) -> Path:
    return layout.folder("lora", task) / "models"
