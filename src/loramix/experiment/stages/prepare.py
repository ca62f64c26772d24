"""Prepare: read, clean, cut and split every task's data, once for all stages."""

import logging

from loramix.data.samples import prepare, write_manifest
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.storage.files import write_csv

log = logging.getLogger("loramix")


def run(recipe: Recipe, layout: Layout) -> None:
    """Write data/samples.parquet and data/counts.csv."""
    prepared = prepare(recipe.tasks, samples=recipe.samples, seed=recipe.seed)
    write_manifest(layout.manifest, prepared)
    columns = list(next(iter(prepared.values())).counts)
    write_csv(
        layout.folder("prepare") / "counts.csv",
        ["task", *columns],
        [[task, *(each.counts[column] for column in columns)] for task, each in prepared.items()],
    )
    for task, each in prepared.items():
        log.info(
            "%s: %s",
            task,
            ", ".join(f"{count:,} {reason}" for reason, count in each.counts.items()),
        )
