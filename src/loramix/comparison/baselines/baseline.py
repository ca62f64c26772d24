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
    """A model that could do a mixture's work.

    label: its name in tables.
    in_words: what it is, to follow "better than".
    paper: its source, if it was published.
    load: (run, folder of the fit, base) -> the model on that base; a context manager, since it may
        change the base for as long as it is in use.
    fit: (run, folder) -> files for `load` in that folder; None where there is nothing to fit.
    leaves: the names of those files and folders, or what gives them for a recipe.
    settings: the settings of the fit besides experts, base, seed and prompts; a change fits anew.
    of_experts: whether it is made of the run's experts.
    cached: whether it can generate with a cache.
    problem: the reason why it cannot run with a recipe; None if it can.
    """

    label: str
    in_words: str
    paper: str | None
    load: Callable[[Run, Path, Base], AbstractContextManager[Model]]
    fit: Callable[[Run, Path], None] | None = None
    leaves: tuple[str, ...] | Callable[[Recipe], tuple[str, ...]] = ()
    settings: Callable[[Recipe], Settings] = lambda recipe: {}
    of_experts: bool = True
    cached: bool = True
    problem: Callable[[Recipe], str | None] = lambda recipe: None

    def leaves_of(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the names of the files and folders that `fit` leaves with a recipe."""
        return self.leaves(recipe) if callable(self.leaves) else self.leaves
