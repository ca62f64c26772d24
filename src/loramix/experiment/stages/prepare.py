"""Prepare: read, clean, cut and split every task's data, once for all stages."""

import logging
from collections.abc import Mapping

from loramix.bases.loading import load_config, load_tokenizer
from loramix.data.samples import REASONS, Prepared, prepare, write_manifest
from loramix.data.tokens.encoding import encode
from loramix.errors import DataError
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.storage.files import write_csv

log = logging.getLogger("loramix")
COUNTS = "counts.csv"


def run(run: Run) -> None:
    """Write data/samples.parquet and data/counts.csv."""
    recipe = run.recipe
    prepared = prepare(recipe.tasks, samples=recipe.samples, seed=recipe.seed)
    if recipe.base.chat:
        _refuse_conversations(recipe, prepared)
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


def _refuse_conversations(recipe: Recipe, prepared: Mapping[str, Prepared]) -> None:
    """Raise DataError if the base's chat template does not take one of the samples: now, and not
    after the training of the tasks before it.
    """
    tokenizer = load_tokenizer(recipe.base.name, revision=recipe.base.revision)
    causal = not load_config(recipe.base.name, revision=recipe.base.revision).is_encoder_decoder
    for task in recipe.tasks:
        for sample in track(prepared[task.name].samples, f"{task.name} in the chat template"):
            try:
                encode(tokenizer, task, sample.input, sample.target, causal=causal, chat=True)
            except DataError as error:
                raise DataError(f"{error}; the sample is {sample.input[:200]!r}") from error
