"""Recipes as YAML files: read, overridden by `key=value`, checked as a whole before any work."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from loramix.data.catalogue import BUILT_IN
from loramix.data.sources import resolved
from loramix.data.tasks import Task
from loramix.errors import DataError, RecipeError, did_you_mean
from loramix.experiment.problems import recipe_problems
from loramix.experiment.recipe import ExpertSpec, Recipe
from loramix.storage.hub import exists
from loramix.storage.texts import EncodingError, read_text
from loramix.storage.yaml_texts import read_yaml


def shipped() -> dict[str, Path]:
    """Return the recipes that come with loramix, by name."""
    folder = Path(str(files("loramix.experiment") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe of a shipped name or a file.

    overrides: `key=value` each, such as `gate.hidden=4`.

    Raises RecipeError that lists every problem found.
    """
    settings = _read(source)
    problems = []  # collected, so that one try shows them all
    for override in overrides:
        problem = _override(settings, override)
        if problem:
            problems.append(problem)
    settings["tasks"], unknown = _tasks(settings.get("tasks"))
    problems += unknown
    recipe = None
    try:
        recipe, unreadable = _resolved(Recipe.model_validate(settings))
        problems += dict.fromkeys([*unreadable, *recipe_problems(recipe)])
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if recipe is None or problems:
        found = "\n".join(f"  - {problem}" for problem in problems)
        raise RecipeError(f"{source} cannot be run:\n{found}")
    return recipe


def read_value(text: str) -> object:
    """Return the value of an override as YAML reads it, or as text."""
    scientific = "e" in text.lower() and text[:1].isdigit()  # YAML takes 1e-3 for a text
    try:
        return float(text) if scientific else read_yaml(text)
    except (ValueError, TypeError, OverflowError):
        return text


def _resolved(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe with the format and columns of every task, and why some have none; and with
    the hidden units that its experts need, unless it says how many.
    """
    tasks, problems = [], []
    for task in recipe.tasks:
        try:
            tasks.append(resolved(task))
        except DataError as error:
            tasks.append(task)
            problems.append(str(error))
    changes: dict[str, object] = {"tasks": tuple(tasks)}
    if "hidden" not in recipe.gate.model_fields_set:
        hidden = max(recipe.gate.hidden, len(recipe.expert_names))
        changes["gate"] = recipe.gate.model_copy(update={"hidden": hidden})
    return recipe.model_copy(update=changes), problems


def _read(source: str, seen: tuple[Path, ...] = ()) -> dict[str, object]:
    """Return the settings of a recipe, merged into those of the recipe that it `extends`.

    seen: the files on the way here, so that a circle is found.
    """
    known = shipped()
    path = known.get(source, Path(source))
    if not exists(path) or not path.is_file():
        raise RecipeError(
            f"there is no recipe '{source}'{did_you_mean(source, known)}: neither a file nor one "
            f"of {', '.join(known)}"
        )
    try:
        text = read_text(path)
    except (OSError, EncodingError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    try:
        settings = read_yaml(text)
    except (ValueError, TypeError, OverflowError) as error:  # TypeError: a key that is a list
        tabs = "; indent with spaces, not with tabs" if "'\\t'" in str(error) else ""
        raise RecipeError(f"{path} is no valid YAML: {error}{tabs}") from error
    if not isinstance(settings, dict):
        raise RecipeError(
            f"{path} holds no settings; a recipe is a YAML mapping with name, base and tasks"
        )
    if "extends" not in settings:
        return settings
    parent = str(settings.pop("extends"))
    if path.resolve() in seen:
        raise RecipeError(f"{path} extends '{parent}', which extends it in turn")
    # a file beside this one comes before a shipped recipe of the same name
    beside = path.parent / parent
    found = str(beside) if exists(beside) else parent
    return _merged(_read(found, (*seen, path.resolve())), settings)


def _merged(parent: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return the parent's settings with those of `own` in their place, merged key by key.

    The mixtures of a comparison are replaced as a whole: they are the list of the compared.
    """
    merged = dict(parent)
    for key, value in own.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and key != "mixtures":
            merged[key] = _merged(before, value)
        else:
            merged[key] = value
    return merged


def _override(settings: dict[str, object], override: str) -> str | None:
    """Set `a.b=value` in `settings`, where tasks go by their name; return the problem, if any."""
    path, separator, text = override.partition("=")
    if not separator:
        return f"'{override}' is no override; write key=value, such as gate.learning_rate=0.001"
    *parents, last = path.split(".")
    group: object = settings
    for parent in parents:
        if isinstance(group, list):
            named = {_task_name(item): item for item in group if isinstance(item, dict)}
            if parent not in named:
                return f"{path}: there is no task '{parent}'{did_you_mean(parent, named)}"
            group = named[parent]
        elif isinstance(group, dict):
            group = group.setdefault(parent, {})  # a misspelt group is an unknown key later
    if not isinstance(group, dict):
        return f"{path}: '{'.'.join(parents)}' holds a single value, not settings"
    group[last] = read_value(text)
    return None


def _task_name(item: Mapping[str, object]) -> str:
    return str(item.get("name", item.get("use", "")))


def _tasks(entries: object) -> tuple[object, list[str]]:
    """Return the tasks, `use: NAME` replaced by the built-in task's settings, and the problems."""
    if not isinstance(entries, list):
        return entries, []  # no list of tasks: the models say so
    resolved: list[object] = []
    problems = []
    for entry in entries:
        item = {"use": entry} if isinstance(entry, str) else entry
        if not isinstance(item, dict) or "use" not in item:
            resolved.append(item)
            continue
        name, own = str(item["use"]), {key: item[key] for key in item if key != "use"}
        if name in BUILT_IN:
            resolved.append({**BUILT_IN[name].model_dump(), **own})
        else:
            problems.append(
                f"tasks: no built-in task '{name}'{did_you_mean(name, BUILT_IN)}; there are "
                f"{', '.join(BUILT_IN)}"
            )
    return resolved, problems


def _explain(error: ErrorDetails) -> str:
    """Return a validation error in a recipe's words: key, problem and value found."""
    location, found = error["loc"], error.get("input")
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(str(location[-1]), _siblings(location))}"
    # a whole group of settings would bury the message
    hidden = isinstance(found, dict | list) or error["type"] == "missing"
    return f"{key}: {error['msg']}" + ("" if hidden else f" (found {found!r})")


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed beside the one that `location` names."""
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if part == "tasks":
            model = Task
        elif part == "experts":
            model = ExpertSpec
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return list(model.model_fields)
