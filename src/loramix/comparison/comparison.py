"""A comparison in its folder, and one model of it with its fit and its loading."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from loramix.bases.loading import Base
from loramix.experiment.answers import Model
from loramix.experiment.graph import (
    PROMPT_FIELDS,
    Settings,
    Step,
    base_settings,
    expert_settings,
    expert_steps,
    task_settings,
)
from loramix.experiment.recipe import Recipe, TestSet
from loramix.experiment.run import CHECKPOINTS, Run

STAGE = "compare"


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison, trained with one seed.

    key: the name of its folder and of its steps.
    row: the key of its row in tables; models of several seeds share one, and so do the full
        finetunes of several tasks.
    label: the name of that row.
    seed: of its training.
    load: puts it together on the base, for as long as the context lasts.
    needs: the steps that must be done before it is asked.
    fits: those of them that are its own.
    learned: the folders whose records say what it learned from.
    asks: the tasks whose prompts it answers; None for all.
    cached: whether it generates with a cache.
    gated: whether it is a mixture with trained gates.
    folder: where its own training lies, if it has any.
    """

    key: str
    row: str
    label: str
    seed: int
    load: Callable[[Base], AbstractContextManager[Model]]
    needs: tuple[str, ...]
    fits: tuple[Step, ...] = ()
    learned: tuple[Path, ...] = ()
    asks: tuple[str, ...] | None = None
    cached: bool = True
    gated: bool = False
    folder: Path | None = None

    def asked(self, test_sets: Sequence[TestSet]) -> list[TestSet]:
        """Return the test sets that it is asked: only the first if it generates without a cache."""
        return [each for each in test_sets if self.cached or each == test_sets[0]]


@dataclass(frozen=True)
class Comparison:
    """The comparison of a run's recipe. A run folder may hold several, which share its experts."""

    run: Run

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run and of the comparison."""
        return self.run.recipe

    @property
    def root(self) -> Path:
        """The folder of the comparison."""
        return comparison_folder(self.recipe, self.run.root)

    def folder(self, model: ComparedModel, test_set: TestSet) -> Path:
        """Return where a model's answers to a test set lie."""
        return self.root / model.key / test_set

    @property
    def expert_steps(self) -> tuple[str, ...]:
        """The steps that leave the samples and the experts."""
        return expert_steps(self.recipe)

    @property
    def expert_folders(self) -> tuple[Path, ...]:
        """The folders with the records of the trained experts; of given ones, nobody knows what
        they have learned from.
        """
        return tuple(self.run.folder("lora", task.name) for task in self.recipe.trained)

    def step_key(self, name: str) -> str:
        """Return the key of one of this comparison's steps."""
        return f"compare-{self.recipe.name}-{name}"

    def fit_step(
        self,
        key: str,
        work: Callable[[], None],
        settings: Settings,
        leaves: Sequence[str],
        *,
        needs: Sequence[str],
    ) -> Step:
        """Return the step in which `work` fits a model and leaves files in its folder."""
        folder = self.root / key
        common: Settings = {"base": base_settings(self.recipe.base), "seed": self.recipe.seed}
        prompts = task_settings(self.recipe.tasks, PROMPT_FIELDS)
        return Step(
            self.step_key(key),
            STAGE,
            {**common, **settings, **expert_settings(self.recipe), "prompts": prompts},
            tuple(needs),
            tuple(folder / name for name in leaves),
            work,
            scratch=folder / CHECKPOINTS,
        )


def comparison_folder(recipe: Recipe, root: Path) -> Path:
    """Return the folder of a recipe's comparison in the run folder `root`."""
    return root / "compare" / recipe.name
