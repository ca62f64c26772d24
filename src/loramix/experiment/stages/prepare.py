"""Prepare: read, clean, cut and split every task's data, once for all stages."""

import logging

from loramix.data.samples import REASONS, prepare, write_manifest
from loramix.experiment.run import Run
from loramix.storage.files import write_csv

log = logging.getLogger("loramix")
COUNTS = "counts.csv"


def run(run: Run) -> None:
    """Write data/samples.parquet and data/counts.csv."""
    recipe = run.recipe
    prepared = prepare(recipe.tasks, samples=recipe.samples, seed=recipe.seed)
    write_manifest(run.manifest_file, prepared)
    # some reasons are counted where there are any, and all columns keep one order
    counted = [reason for found in prepared.values() for reason in found.counts]
    columns = [reason for reason in REASONS if reason in counted]
    rows = []
    for task, found in prepared.items():
        rows.append([task, *(found.counts.get(column, 0) for column in columns)])
        counts = [f"{count:,} {reason}" for reason, count in found.counts.items()]
        log.info("%s: %s", task, ", ".join(counts))
    write_csv(run.folder("prepare") / COUNTS, ["task", *columns], rows)
