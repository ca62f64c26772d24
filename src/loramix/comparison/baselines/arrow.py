"""Arrow: every token takes the experts whose first direction it has most of; trains nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.experiment.run import Run

TOP_K = 2  # experts of each token


@contextmanager
def load(run: Run, folder: Path, base: Base) -> Iterator[PeftModel]:
    """Yield Arrow over the run's experts."""
    tasks, seed = run.recipe.tasks, run.recipe.seed
    config = ArrowConfig(top_k=min(TOP_K, len(tasks)), router_temperature=1.0, rng_seed=seed)
    adapters = [str(run.adapter(task)) for task in tasks]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield create_arrow_model(base.model, adapters, config)


BASELINE = Baseline("Arrow", paper="Ostapenko et al. 2024, arXiv:2405.11157", load=load)
