"""Baselines: other ways to use the same experts, or the same data; one file each.

To add one, write a file like `uniform.py` (nothing to fit) or `ties.py`, name it here, and add the
name to `ModelName` in `loramix.experiment.recipe`.
"""

from collections.abc import Mapping

from loramix.comparison.baselines import (
    arrow,
    cat,
    dare,
    joint,
    lorahub,
    retriever,
    static,
    ties,
    uniform,
    xlora,
)
from loramix.comparison.baselines.baseline import Baseline

BASELINES: Mapping[str, Baseline] = {
    "joint": joint.BASELINE,
    "joint-small": joint.SMALL,
    "uniform": uniform.BASELINE,
    "static": static.BASELINE,
    "cat": cat.BASELINE,
    "ties": ties.BASELINE,
    "dare": dare.BASELINE,
    "lorahub": lorahub.BASELINE,
    "arrow": arrow.BASELINE,
    "xlora": xlora.BASELINE,
    "retriever": retriever.BASELINE,
}
