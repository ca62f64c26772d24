"""Settings of a sweep: `gate.hidden=4,8 lora.rank=2` as recipes, each checked before any work."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from loramix.errors import RecipeError
from loramix.experiment.reading import load_recipe, read_value
from loramix.experiment.recipe import Recipe
from loramix.storage.files import path_part

_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


@dataclass(frozen=True)
class Setting:
    """One combination of values: its folder's name, the values by key, and the recipe with them."""

    name: str
    values: Mapping[str, str]
    recipe: Recipe


def read_sweep(source: str, arguments: Sequence[str]) -> list[Setting]:
    """Return every combination of the values that the arguments give to keys of a recipe.

    arguments: `key=value` for all recipes, and `key=value,value,…` for what is swept.

    Raises RecipeError that lists every problem found, with a setting that has it.
    """
    fixed, swept = _parted(arguments)
    if not swept:
        raise RecipeError(
            f"{source}: nothing is swept; give a key several values, such as gate.hidden=4,8, or "
            "use loramix run"
        )
    settings: dict[str, Setting] = {}
    problems: dict[str, str] = {}  # with the first setting that has each
    for texts in product(*swept.values()):
        values = dict(zip(swept, texts, strict=True))
        name = path_part("_".join(f"{key}-{value}" for key, value in values.items()))
        try:
            recipe = load_recipe(source, [*fixed, *(f"{key}={values[key]}" for key in values)])
        except RecipeError as error:
            for problem in _listed(error):
                problems.setdefault(problem, " ".join(f"{key}={values[key]}" for key in values))
            continue
        same = next((each for each in settings.values() if each.recipe == recipe), None)
        if same is not None or name in settings:
            problems[f"{name} and {same.name if same else name} are the same"] = "twice"
        settings[name] = Setting(name, values, recipe)
    if problems:
        found = "\n".join(f"  - {problem} (with {where})" for problem, where in problems.items())
        raise RecipeError(f"{source} cannot be swept:\n{found}")
    return list(settings.values())


def _parted(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides of all recipes, and the values of each swept key, each in one form."""
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    keys: set[str] = set()
    for argument in arguments:
        key, _, text = argument.partition("=")
        if key in keys:
            raise RecipeError(f"'{key}' is given twice; give all its values in one argument")
        keys.add(key)
        values = [_plain(value) for value in _values(text)]
        if len(values) < 2:
            fixed.append(argument)
            continue
        for value in values:
            if not value:
                raise RecipeError(f"'{argument}' has an empty value; take out a comma")
            if values.count(value) > 1:
                raise RecipeError(f"'{argument}' has the value {value} twice; take out one")
        swept[key] = values
    return fixed, swept


def _plain(text: str) -> str:
    """Return a number in its one form, as 1e-3 is 0.001, and any other text as it is."""
    value = read_value(text.strip())
    return str(value) if type(value) in (int, float) else text.strip()


def _values(text: str) -> Iterator[str]:
    """Yield the parts between commas that stand neither in brackets nor in quotes."""
    part, depth, quote = "", 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            yield part
            part = ""
            continue
        part += character
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
    yield part


def _listed(error: RecipeError) -> list[str]:
    """Return the problems that the error of a recipe lists; raises one that lists none."""
    _, *problems = str(error).splitlines()
    if not problems:
        raise error
    return [problem.strip().removeprefix("- ") for problem in problems]
