"""Who is compared: how each model is fitted, loaded and called, and what it has learned from."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loramix.bases.loading import Base, load_base
from loramix.comparison.baselines import fixed, merges, routers
from loramix.data.leaks import RECORD
from loramix.data.tasks import Task
from loramix.experiment.answers import Model
from loramix.experiment.graph import PROMPT_KEYS, Node, Settings, part
from loramix.experiment.recipe import GateSpec, ModelName, Recipe, TestSet
from loramix.experiment.run import CHECKPOINTS, ROUTING_STEPS, Layout
from loramix.experiment.stages import gate, lora
from loramix.mixture.model import MixtureModel

Load = Callable[[Base], AbstractContextManager[Model]]


@dataclass(frozen=True)
class Contender:
    """One model of the comparison.

    key: the name of its folder. label: its name in tables. seed: of its training. asks: the tasks
    whose prompts it answers, None for all. fits: the steps that make it. needs: the steps that must
    be done before it is asked.
    learned: the folders whose records say what it learned from. cached: whether it generates with a
    cache. gated: whether it is a mixture with trained gates. folder: where what was fitted lies.
    """

    key: str
    label: str
    seed: int
    load: Load
    asks: tuple[str, ...] | None = None
    fits: tuple[Node, ...] = ()
    needs: tuple[str, ...] = ("prepare",)
    learned: tuple[Path, ...] = ()
    cached: bool = True
    gated: bool = False
    folder: Path | None = None

    def asked(self, test_sets: Sequence[TestSet]) -> list[TestSet]:
        """Return the test sets that it is asked: only the first if it generates without a cache."""
        return [each for each in test_sets if self.cached or each == test_sets[0]]


def contenders(recipe: Recipe, layout: Layout) -> tuple[list[Contender], list[str]]:
    """Return the models of the recipe's comparison in the order of its tables, and why others are
    left out.
    """
    place = Place(recipe, layout)
    found: list[Contender] = []
    left_out = []
    for name in recipe.comparison.models:
        problem = routers.xlora_problem(recipe) if name == "xlora" else None
        if problem:
            left_out.append(problem)
        else:
            found += _MAKE[name](place)
    return found, left_out


@dataclass(frozen=True)
class Place:
    """Where a comparison lies in a run's folder, and what several of its models depend on."""

    recipe: Recipe
    layout: Layout

    @property
    def root(self) -> Path:
        """The folder of this recipe's comparison."""
        return self.layout.root / "compare" / self.recipe.name

    @property
    def experts(self) -> tuple[str, ...]:
        """The steps that train the experts."""
        return tuple(f"lora-{task.name}" for task in self.recipe.tasks)

    @property
    def expert_folders(self) -> tuple[Path, ...]:
        """Where the experts lie."""
        return tuple(self.layout.folder("lora", task.name) for task in self.recipe.tasks)

    def step(self, key: str) -> str:
        """Return the key of one of this comparison's steps."""
        return f"compare-{self.recipe.name}-{key}"

    def fit(
        self,
        key: str,
        work: Callable[..., None],
        settings: Settings,
        outputs: Sequence[str],
        *,
        needs: Sequence[str],
    ) -> Node:
        """Return the step in which `work` fits a model and leaves `outputs` in its folder."""
        folder = self.root / key
        common = self.recipe.model_dump(mode="json", include={"base", "seed"})
        return Node(
            self.step(key),
            "compare",
            {**common, **settings, "prompts": part(self.recipe.tasks, PROMPT_KEYS)},
            tuple(needs),
            tuple(folder / name for name in outputs),
            work,
            scratch=folder / CHECKPOINTS,
        )


def _base(place: Place) -> list[Contender]:
    return [Contender("base", "base", place.recipe.seed, _plain)]


def _finetune(place: Place) -> list[Contender]:
    return [
        Contender(
            f"finetune-{task.name}",
            "full finetune",
            place.recipe.seed,
            partial(_finetuned, place, task),
            asks=(task.name,),
            needs=(f"finetune-{task.name}",),
            learned=(place.layout.folder("finetune", task.name),),
        )
        for task in place.recipe.tasks
    ]


def _experts(place: Place) -> list[Contender]:
    return [
        Contender(
            f"lora-{task.name}",
            f"LoRA {task.name}",
            place.recipe.seed,
            partial(merges.with_adapter, folder=place.layout.folder("lora", task.name) / "models"),
            needs=(f"lora-{task.name}",),
            learned=(place.layout.folder("lora", task.name),),
        )
        for task in place.recipe.tasks
    ]


def _joint(place: Place) -> list[Contender]:
    """One adapter of all tasks, with as many parameters as the experts together."""
    recipe, folder = place.recipe, place.root / "joint"
    count = len(recipe.tasks)
    spec = recipe.lora.model_copy(
        update={"rank": recipe.lora.rank * count, "alpha": recipe.lora.alpha * count}
    )
    work = partial(
        lora.learn_adapter,
        recipe,
        place.layout,
        spec,
        recipe.tasks,
        folder=folder,
        label="of all tasks at once",
    )
    outputs = ["models", "losses.csv", "losses.png", RECORD]
    fit = place.fit(
        "joint", work, {"lora": spec.model_dump(mode="json")}, outputs, needs=["prepare"]
    )
    load = partial(merges.with_adapter, folder=folder / "models")
    return [_fitted(place, "joint", "one LoRA, all tasks", load, fit, learned=(folder,))]


def _uniform(place: Place) -> list[Contender]:
    weights = fixed.uniform_weights(place.recipe)
    load = partial(fixed.fixed_mixture, recipe=place.recipe, layout=place.layout, weights=weights)
    return [
        Contender(
            "uniform",
            "uniform weights",
            place.recipe.seed,
            load,
            needs=place.experts,
            learned=place.expert_folders,
        )
    ]


def _static(place: Place) -> list[Contender]:
    return [
        _searched(place, "static", "best static weights", fixed.search_static, {"search_samples"})
    ]


def _lorahub(place: Place) -> list[Contender]:
    keys = {"search_samples", "search_steps"}
    return [_searched(place, "lorahub", "LoraHub", fixed.search_lorahub, keys)]


def _searched(
    place: Place,
    key: str,
    label: str,
    search: Callable[[Recipe, Layout, Path], None],
    keys: set[str],
) -> Contender:
    folder = place.root / key
    settings: Settings = {"search": place.recipe.comparison.model_dump(mode="json", include=keys)}
    work = partial(search, place.recipe, place.layout, folder)
    fit = place.fit(key, work, settings, [fixed.WEIGHTS, fixed.TRIED, RECORD], needs=place.experts)

    @contextmanager
    def load(base: Base) -> Iterator[Model]:
        mixing = "parameter" if key == "lorahub" else "output"
        weights = fixed.read_weights(folder)
        with fixed.fixed_mixture(base, place.recipe, place.layout, weights, mixing) as mixture:  # type: ignore[arg-type]
            yield mixture

    return _fitted(place, key, label, load, fit, learned=(*place.expert_folders, folder))


def _merged(way: merges.Merge, place: Place) -> list[Contender]:
    folder = place.root / way
    settings: Settings = {"merge": {"density": place.recipe.comparison.density}}
    work = partial(merges.merge, place.recipe, place.layout, folder, way=way)
    fit = place.fit(way, work, settings, ["models"], needs=place.experts)
    load = partial(merges.with_adapter, folder=folder / "models")
    return [_fitted(place, way, way.upper(), load, fit, learned=place.expert_folders)]


def _arrow(place: Place) -> list[Contender]:
    load = partial(routers.arrow, recipe=place.recipe, layout=place.layout)
    return [
        Contender(
            "arrow",
            "Arrow",
            place.recipe.seed,
            load,
            needs=place.experts,
            learned=place.expert_folders,
        )
    ]


def _xlora(place: Place) -> list[Contender]:
    folder, recipe = place.root / "xlora", place.recipe
    settings: Settings = {
        **recipe.model_dump(mode="json", include={"gate"}),
        "classifier": {"learning_rate": recipe.comparison.xlora_learning_rate},
    }
    work = partial(routers.learn_xlora, recipe, place.layout, folder)
    outputs = [routers.CLASSIFIER, "losses.csv", "losses.png", RECORD]
    fit = place.fit("xlora", work, settings, outputs, needs=place.experts)
    load = partial(routers.xlora, recipe=recipe, layout=place.layout, folder=folder)
    return [
        _fitted(
            place,
            "xlora",
            "X-LoRA",
            load,
            fit,
            learned=(*place.expert_folders, folder),
            cached=False,
        )
    ]


def _mixtures(place: Place) -> list[Contender]:
    return [
        _mixture(place, name, spec, seed)
        for name, spec in place.recipe.mixtures().items()
        for seed in place.recipe.comparison.seeds
    ]


def _mixture(place: Place, name: str, spec: GateSpec, seed: int) -> Contender:
    key = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-seed{seed}"
    folder = place.root / key
    recipe = place.recipe.model_copy(update={"gate": spec, "seed": seed})
    work = partial(
        gate.learn_gates, recipe, place.layout, folder=folder, label=f"{name}, seed {seed}"
    )
    settings: Settings = {"gate": spec.model_dump(mode="json"), "seeds": {"seed": seed}}
    outputs = ["models", "losses.csv", "losses.png", "auxiliary.csv", ROUTING_STEPS, RECORD]
    fit = place.fit(key, work, settings, outputs, needs=place.experts)

    @contextmanager
    def load(base: Base) -> Iterator[Model]:
        yield MixtureModel.from_pretrained(folder / "models", base=base.model)

    return Contender(
        key,
        name,
        seed,
        load,
        fits=(fit,),
        needs=(fit.key,),
        learned=(*place.expert_folders, folder),
        gated=True,
        folder=folder,
    )


def _fitted(
    place: Place,
    key: str,
    label: str,
    load: Load,
    fit: Node,
    *,
    learned: tuple[Path, ...],
    cached: bool = True,
) -> Contender:
    return Contender(
        key,
        label,
        place.recipe.seed,
        load,
        fits=(fit,),
        needs=(fit.key,),
        learned=learned,
        cached=cached,
        folder=place.root / key,
    )


@contextmanager
def _plain(base: Base) -> Iterator[Model]:
    yield base.model


@contextmanager
def _finetuned(place: Place, task: Task, base: Base) -> Iterator[Model]:
    folder = place.layout.folder("finetune", task.name) / "models"
    yield load_base(str(folder), dtype=place.recipe.base.dtype).model.to(base.model.device)


_MAKE: dict[ModelName, Callable[[Place], list[Contender]]] = {
    "base": _base,
    "finetune": _finetune,
    "experts": _experts,
    # the answers of every task's own expert, once more: see `loramix.comparison.scores`
    "oracle": lambda place: [],
    "joint": _joint,
    "uniform": _uniform,
    "static": _static,
    "ties": partial(_merged, "ties"),
    "dare": partial(_merged, "dare"),
    "lorahub": _lorahub,
    "arrow": _arrow,
    "xlora": _xlora,
    "mixtures": _mixtures,
}
