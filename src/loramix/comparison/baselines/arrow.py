"""Arrow: every token takes the experts whose first direction it has most of; trains nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model

from loramix.bases.loading import Base
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.layouts import unequal_layouts
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run

TOP_K = 2  # experts of each token


def problem(recipe: Recipe) -> str | None:
    """Return why PEFT's Arrow refuses the experts; None if it does not."""
    unequal = unequal_layouts(recipe)
    return f"Arrow needs experts of one rank in the same layers: {unequal}" if unequal else None


@contextmanager
def load(run: Run, folder: Path, base: Base) -> Iterator[PeftModel]:
    """Yield Arrow over the run's experts."""
    names, seed = run.recipe.expert_names, run.recipe.seed
    config = ArrowConfig(top_k=min(TOP_K, len(names)), router_temperature=1.0, rng_seed=seed)
    adapters = [str(run.adapter(name)) for name in names]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield create_arrow_model(base.model, adapters, config)


BASELINE = Baseline(
    "Arrow",
    "Arrow, which routes without training",
    paper="Ostapenko et al. 2024, arXiv:2405.11157",
    load=load,
    problem=problem,
)
