"""Baselines: other ways to use the same experts, or the same data; one file each.

To add one, write a file like `uniform.py` (nothing to fit) or `ties.py`, name it here, and add the
name to `ModelName` in `loramix.experiment.recipe`.
"""

from collections.abc import Mapping

from loramix.comparison.baselines import (
    arrow,
    dare,
    joint,
    lorahub,
    static,
    ties,
    uniform,
    xlora,
)
from loramix.comparison.baselines.baseline import Baseline

BASELINES: Mapping[str, Baseline] = {
    "joint": joint.BASELINE,
    "uniform": uniform.BASELINE,
    "static": static.BASELINE,
    "ties": ties.BASELINE,
    "dare": dare.BASELINE,
    "lorahub": lorahub.BASELINE,
    "arrow": arrow.BASELINE,
    "xlora": xlora.BASELINE,
}
