"""The models of a comparison: the run's own, the baselines, and mixtures of several seeds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from loramix.bases.loading import Base
from loramix.comparison.baselines import BASELINES
from loramix.comparison.baselines.baseline import Baseline
from loramix.comparison.baselines.shared import with_adapter
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.data.leaks import RECORD
from loramix.data.tasks import Task
from loramix.errors import RecipeError
from loramix.experiment.answers import Model
from loramix.experiment.given import unequal_ranks
from loramix.experiment.graph import GATE_OUTPUTS, Settings, Step, gate_settings, lora_step
from loramix.experiment.labels import BASE, FINETUNE, ORACLE, expert_key, label
from loramix.experiment.recipe import GateSpec
from loramix.experiment.run import MODELS, Run
from loramix.experiment.stages.gate import learn_gates
from loramix.mixture.model import MixtureModel
from loramix.storage.files import path_part


def compared_models(comparison: Comparison) -> tuple[list[ComparedModel], list[str]]:
    """Return the models of the recipe's comparison in the order of its tables, and why others are
    left out.

    Raises RecipeError if two rows of the tables had one label.
    """
    models: list[ComparedModel] = []
    left_out: list[str] = []
    for name in comparison.recipe.comparison.models:
        baseline = BASELINES.get(name)
        if name == "mixtures":
            models += _mixtures(comparison, left_out)
            continue
        if baseline is None:
            models += _of_run(comparison, name)
            continue
        problem = baseline.problem(comparison.recipe)
        if problem:
            left_out.append(problem)
        else:
            models.append(_baseline(comparison, name, baseline))
    _refuse_equal_names(models)
    return models, left_out


def mixture_row(name: str) -> str:
    """Return the key of the table row of one of `comparison.mixtures`."""
    return f"mixture-{_file_name(name)}"


def _of_run(comparison: Comparison, name: str) -> list[ComparedModel]:
    """Return the models that the run itself trains."""
    if name == "base":
        return [_base(comparison)]
    if name == "finetune":
        return [_finetune(comparison, task) for task in comparison.recipe.tasks]
    if name == "experts":
        return [_expert(comparison, expert) for expert in comparison.recipe.expert_names]
    if "experts" in comparison.recipe.comparison.models:
        return []  # the oracle: the answers of every task's own expert once more, see `scores`
    return [_of_oracle(comparison, expert) for expert in comparison.recipe.expert_names]


def _mixtures(comparison: Comparison, left_out: list[str]) -> list[ComparedModel]:
    """Return the mixtures of all seeds; add why others cannot be made of these experts to
    `left_out`.
    """
    models = []
    for name, spec in comparison.recipe.mixtures().items():
        unequal = unequal_ranks(comparison.recipe) if spec.mixing == "parameter" else None
        if unequal:
            left_out.append(f"{name}: parameter mixing needs experts of one rank: {unequal}")
            continue
        models += [
            _mixture(comparison, name, spec, seed) for seed in comparison.recipe.comparison.seeds
        ]
    return models


def _base(comparison: Comparison) -> ComparedModel:
    @contextmanager
    def load(base: Base) -> Iterator[Model]:
        yield base.model

    return ComparedModel(BASE, BASE, label(BASE), comparison.recipe.seed, load, ("prepare",))


def _finetune(comparison: Comparison, task: Task) -> ComparedModel:
    run, key = comparison.run, f"finetune-{task.name}"
    folder = run.folder("finetune", task.name)

    @contextmanager
    def load(base: Base) -> Iterator[Model]:
        yield run.load_trained_base(folder / MODELS).model

    return ComparedModel(
        key,
        FINETUNE,
        label(FINETUNE),
        run.recipe.seed,
        load,
        needs=(key,),
        learned=(folder,),
        asks=(task.name,),
    )


def _expert(comparison: Comparison, name: str) -> ComparedModel:
    run, row = comparison.run, expert_key(name)
    folder = run.folder("lora", name)
    return ComparedModel(
        path_part(row),
        row,
        label(row),
        run.recipe.seed,
        partial(with_adapter, folder=run.adapter(name)),
        needs=(lora_step(name),),
        learned=(folder,) if folder in comparison.expert_folders else (),
    )


def _of_oracle(comparison: Comparison, name: str) -> ComparedModel:
    """Return an expert that is asked its own tasks alone, as a part of the oracle."""
    own = [task for task, expert in comparison.recipe.own_experts.items() if expert == name]
    expert = _expert(comparison, name)
    key, oracle = f"{expert.key}-own", label(ORACLE)
    return replace(expert, key=key, row=ORACLE, label=oracle, asks=tuple(own))


def _baseline(comparison: Comparison, name: str, baseline: Baseline) -> ComparedModel:
    run, folder = comparison.run, comparison.root / name
    needs = comparison.expert_steps if baseline.of_experts else ("prepare",)
    learned = comparison.expert_folders if baseline.of_experts else ()
    fits: tuple[Step, ...] = ()
    leaves = baseline.leaves_of(run.recipe)
    if baseline.fit is not None:
        work = partial(baseline.fit, run, folder)
        settings = baseline.settings(run.recipe)
        fit = comparison.fit_step(name, work, settings, leaves, needs=needs)
        needs, fits = (fit.key,), (fit,)
    if RECORD in leaves:
        learned = (*learned, folder)
    return ComparedModel(
        name,
        name,
        baseline.label,
        run.recipe.seed,
        partial(baseline.load, run, folder),
        needs,
        fits=fits,
        learned=learned,
        cached=baseline.cached,
        folder=folder,
    )


def _mixture(comparison: Comparison, name: str, spec: GateSpec, seed: int) -> ComparedModel:
    key = f"{_file_name(name)}-seed{seed}"
    run: Run = comparison.run.changed(gate=spec, seed=seed)
    folder = comparison.root / key
    work = partial(learn_gates, run, folder=folder, title=f"{name}, seed {seed}")
    settings: Settings = {"gate": gate_settings(spec), "seeds": {"seed": seed}}
    fit = comparison.fit_step(key, work, settings, GATE_OUTPUTS, needs=comparison.expert_steps)

    @contextmanager
    def load(base: Base) -> Iterator[Model]:
        yield MixtureModel.from_pretrained(folder / MODELS, base=base.model)

    return ComparedModel(
        key,
        mixture_row(name),
        name,
        seed,
        load,
        needs=(fit.key,),
        fits=(fit,),
        learned=(*comparison.expert_folders, folder),
        gated=True,
        folder=folder,
    )


def _refuse_equal_names(models: list[ComparedModel]) -> None:
    """Raise RecipeError for one label of two rows, or one folder of two models."""
    rows: dict[str, str] = {}
    keys: dict[str, str] = {}
    for model in models:
        if model.key in keys:
            raise RecipeError(
                f"comparison.mixtures: '{model.label}' and '{keys[model.key]}' would be filed in "
                f"one folder, {model.key}; choose another name for one of them"
            )
        keys[model.key] = model.label
        if rows.setdefault(model.label, model.row) != model.row:
            raise RecipeError(
                f"comparison.mixtures: '{model.label}' is the name of another model of the "
                "comparison; choose another one"
            )


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)
