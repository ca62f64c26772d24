"""Recipes: one YAML file that says what a run does, checked as a whole before any work."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, Field, ValidationError

from loramix.config import GateConfig
from loramix.data.sources import locate
from loramix.data.tasks import BUILT_IN, Task
from loramix.errors import DataError, LoramixError, RecipeError, did_you_mean
from loramix.experiment.recipe import (
    BaseSpec,
    ComparisonSpec,
    EvaluationSpec,
    FinetuneSpec,
    GateSpec,
    GenerationSpec,
    LoraSpec,
    Strict,
    TrainSpec,
)

STAGES = ("prepare", "benchmark", "finetune", "lora", "gate", "evaluate", "report")


class Recipe(Strict):
    """Everything that a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=0, ge=0)
    base: BaseSpec = BaseSpec()
    tasks: tuple[Task, ...] = Field(min_length=1)
    samples: int | None = Field(default=None, ge=1)
    finetune: FinetuneSpec = FinetuneSpec()
    lora: LoraSpec = LoraSpec()
    gate: GateSpec = GateSpec()
    generation: GenerationSpec = GenerationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    comparison: ComparisonSpec = ComparisonSpec()

    def mixtures(self) -> dict[str, GateSpec]:
        """Return the gates of every mixture of the comparison, by its name; raises ValidationError
        for unknown keys.
        """
        training = self.gate.model_dump(include=set(TrainSpec.model_fields))
        starts = {
            True: training | {"init": "zero", "bare": 0.0} | GateConfig.reference().model_dump(),
            False: self.gate.model_dump(),
        }
        return {
            name: GateSpec.model_validate(starts[changes.get("context") == "reference"] | changes)
            for name, changes in self.comparison.mixtures.items()
        }

    def to_yaml(self) -> str:
        """Return the resolved recipe: every setting spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped() -> dict[str, Path]:
    """Return the recipes that come with loramix, by name."""
    folder = Path(str(files("loramix.experiment") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe from a shipped name or a file, with `key=value` overrides
    (`gate.hidden=4`).

    Raises RecipeError that lists every problem found.
    """
    settings = _read(source)
    problems = [problem for override in overrides if (problem := _override(settings, override))]
    settings["tasks"], task_problems = _tasks(settings.get("tasks"))
    problems += task_problems
    recipe = None
    try:
        recipe = Recipe.model_validate(settings)
    except ValidationError as error:
        problems += [
            _explain(item["loc"], item["type"], item["msg"], item.get("input"))
            for item in error.errors()
        ]
    problems += [
        problem for task in (recipe.tasks if recipe else ()) if (problem := _missing_source(task))
    ]
    if recipe:
        problems += _contradictions(recipe)
    if recipe is None or problems:
        raise RecipeError(
            f"{source} cannot be run:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    return recipe


def _read(source: str, seen: tuple[Path, ...] = ()) -> dict[str, object]:
    """Return the settings of a recipe; one that `extends` another holds what it changes in it."""
    known = shipped()
    path = known.get(source, Path(source))
    if not path.is_file():
        raise RecipeError(
            f"there is no recipe '{source}'{did_you_mean(source, known)}: neither a file nor one "
            f"of {', '.join(known)}"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(
            f"{path} holds no settings; a recipe is a YAML mapping with name, base and tasks"
        )
    if "extends" not in settings:
        return settings
    parent = str(settings.pop("extends"))
    if path.resolve() in seen:
        raise RecipeError(f"{path} extends '{parent}', which extends it in turn")
    beside = path.parent / parent
    return _merged(
        _read(str(beside) if beside.is_file() else parent, (*seen, path.resolve())), settings
    )


def _merged(parent: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return the parent's settings with those of `own` in their place; what both group by key is
    merged key by key.

    The mixtures of a comparison are replaced as a whole: they are who is compared.
    """
    merged = dict(parent)
    for key, value in own.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(value, dict) and key != "mixtures"
        merged[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _override(settings: dict[str, object], override: str) -> str | None:
    """Set `a.b=value` in `settings`; tasks are addressed by their name. Return the problem, if
    there is one.
    """
    path, separator, text = override.partition("=")
    if not separator:
        return f"'{override}' is no override; write key=value, such as gate.learning_rate=0.001"
    *parents, last = path.split(".")
    place: object = settings
    for parent in parents:
        if isinstance(place, list):
            named = {_task_name(item): item for item in place if isinstance(item, dict)}
            if parent not in named:
                return f"{path}: there is no task '{parent}'{did_you_mean(parent, named)}"
            place = named[parent]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
    if not isinstance(place, dict):
        return f"{path}: '{'.'.join(parents)}' holds a single value, not settings"
    place[last] = _value(text)
    return None


def _value(text: str) -> object:
    try:
        return float(text) if "e" in text.lower() and text[:1].isdigit() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def _task_name(item: Mapping[str, object]) -> str:
    return str(item.get("name", item.get("use", "")))


def _tasks(entries: object) -> tuple[object, list[str]]:
    """Return the task entries with `use: NAME` replaced by the built-in task's settings."""
    if not isinstance(entries, list):
        return entries, []
    resolved, problems = [], []
    for entry in entries:
        item = (
            {"use": entry}
            if isinstance(entry, str)
            else dict(entry)
            if isinstance(entry, dict)
            else entry
        )
        if not isinstance(item, dict) or "use" not in item:
            resolved.append(item)
            continue
        name = str(item.pop("use"))
        if name not in BUILT_IN:
            problems.append(
                f"tasks: no built-in task '{name}'{did_you_mean(name, BUILT_IN)}; there are "
                f"{', '.join(BUILT_IN)}"
            )
            continue
        resolved.append({**BUILT_IN[name].model_dump(), **item})
    return resolved, problems


def _explain(location: tuple[int | str, ...], kind: str, message: str, found: object) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(str(location[-1]), _siblings(location))}"
    shown = "" if isinstance(found, dict | list) or kind == "missing" else f" (found {found!r})"
    return f"{key}: {message}{shown}"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed where `location` points."""
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if part == "tasks":
            model = Task
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            model = (
                annotation
                if isinstance(annotation, type) and issubclass(annotation, BaseModel)
                else model
            )
    return list(model.model_fields)


def _missing_source(task: Task) -> str | None:
    try:
        locate(task.source)
    except DataError as error:
        return f"task '{task.name}': {error}"
    return None


def _contradictions(recipe: Recipe) -> list[str]:
    from loramix.bases.loading import base_names, resolve_revision

    problems = []
    names = [task.name for task in recipe.tasks]
    if len(set(names)) < len(names):
        problems.append(f"tasks: names must differ, found {names}")
    if recipe.base.name not in base_names():
        try:
            resolve_revision(recipe.base.name, recipe.base.revision)
        except LoramixError as error:
            problems.append(f"base.name: {error}")
    return problems + _mixture_problems(recipe)


def _mixture_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with the gates of the recipe and of every mixture of its comparison."""
    problems = _gate_problems(recipe, recipe.gate, "gate")
    if recipe.gate.context == "reference":
        problems.append(
            "gate.context: the reference gate cannot generate, so a run ends with another one "
            "('prompt'); to compare "
            "with it, name it in comparison.mixtures"
        )
    try:
        mixtures = recipe.mixtures()
    except ValidationError as error:
        return [
            *problems,
            *(
                _of_mixture(recipe, item["loc"], item["type"], item["msg"])
                for item in error.errors()
            ),
        ]
    for name, spec in mixtures.items():
        problems += _gate_problems(recipe, spec, f"comparison.mixtures.{name}")
    names = [*("base", "full finetune", "oracle"), *(f"LoRA {task.name}" for task in recipe.tasks)]
    return problems + [
        f"comparison.mixtures: '{name}' is another model's name"
        for name in mixtures
        if name in names
    ]


def _of_mixture(recipe: Recipe, location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = str(location[0]) if location else "gate"
    named = [name for name, changes in recipe.comparison.mixtures.items() if key in changes]
    hint = did_you_mean(key, GateSpec.model_fields) if kind == "extra_forbidden" else ""
    said = "unknown key" if kind == "extra_forbidden" else message
    return f"comparison.mixtures.{named[0] if named else '?'}.{key}: {said}{hint}"


def _gate_problems(recipe: Recipe, gate: GateSpec, place: str) -> list[str]:
    """Return what these gates could not do."""
    from loramix.bases.loading import load_config

    experts, problems = len(recipe.tasks), []
    if gate.activation == "top-k" and gate.k > experts:
        problems.append(
            f"{place}.k: keeps {gate.k} experts, but there are {experts} tasks; use {experts} or "
            "less"
        )
    needed = {"zero": 1, "prototype": experts, "arrow": 2 * experts}[gate.init]
    if gate.hidden < needed:
        problems.append(
            f"{place}.hidden: init '{gate.init}' needs {needed} hidden units for {experts} tasks"
        )
    if gate.init == "prototype" and gate.context == "reference":
        problems.append(
            f"{place}.init: a reference gate has no biases, which prototypes need; use init 'zero'"
        )
    if gate.init != "arrow" or gate.context != "prompt":
        return problems
    try:
        seq2seq = load_config(recipe.base.name, revision=recipe.base.revision).is_encoder_decoder
    except LoramixError:
        return problems  # a missing base is a problem of its own, found above
    if seq2seq:
        problems.append(
            f"{place}.init: 'arrow' needs gates that read their layer's input, and a decoder's "
            "prompt gates read the "
            "encoder's output; use init 'prototype', or context 'token'"
        )
    return problems
