"""CAT: one weight for every layer and expert, learned on all tasks and the same for every input."""

from functools import partial

from loramix.comparison.baselines import learned_weights
from loramix.comparison.baselines.baseline import Baseline

LABEL = "CAT"

BASELINE = Baseline(
    LABEL,
    "CAT, one learned weight for every layer and expert",
    paper="Prabhakar et al. 2024, arXiv:2410.13025",
    load=learned_weights.load,
    fit=partial(learned_weights.learn, per_layer=True, label=f"weights of {LABEL}"),
    leaves=learned_weights.LEAVES,
    settings=learned_weights.settings,
)
