"""The face of a baseline: every file of this folder ends with one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from loramix.bases.loading import Base
from loramix.experiment.answers import Model
from loramix.experiment.graph import Settings
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run


@dataclass(frozen=True)
class Baseline:
    """Something else that could do a mixture's work.

    label: its name in tables.
    paper: where it was published, if it was.
    load: puts it together on a base from a run's experts and the folder of what was fitted; a
        context manager, so that it may change the base while it is in use.
    fit: makes what `load` needs, in a folder; None where there is nothing to fit.
    leaves: the files and folders that `fit` leaves.
    settings: what the fit depends on besides the experts, the base, the seed and the prompts; a
        change fits anew.
    of_experts: whether it is made of the run's experts.
    cached: whether it can generate with a cache.
    problem: why it cannot run with a recipe; None if it can.
    """

    label: str
    paper: str | None
    load: Callable[[Run, Path, Base], AbstractContextManager[Model]]
    fit: Callable[[Run, Path], None] | None = None
    leaves: tuple[str, ...] = ()
    settings: Callable[[Recipe], Settings] = lambda recipe: {}
    of_experts: bool = True
    cached: bool = True
    problem: Callable[[Recipe], str | None] = lambda recipe: None
