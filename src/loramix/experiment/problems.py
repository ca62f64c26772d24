"""Recipes that cannot work: found before any work, each with a remedy."""

from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loramix.bases import loading
from loramix.data.places import locate_all
from loramix.data.tasks import NO_EXPERT, OWN
from loramix.data.tokens.chat import chat_problem
from loramix.errors import DataError, LoramixError, did_you_mean
from loramix.experiment.labels import run_labels
from loramix.experiment.recipe import GateSpec, Recipe
from loramix.mixture.problems import gate_problems

# What lies beside a task's answers, which are called after the task.
_FILES = {"auxiliary", "learned_from", "losses", "routing_steps", "test_loss", "weights"}


def recipe_problems(recipe: Recipe) -> list[str]:
    """Return every reason why this recipe could not be run, one sentence each."""
    return [
        *_missing_sources(recipe),
        *_repeated_names(recipe),
        *_experts(recipe),
        *_missing_base(recipe),
        *_given(recipe),
        *_chats(recipe),
        *_layers_and_lengths(recipe),
        *_gates(recipe),
        *_mixtures(recipe),
    ]


def _missing_sources(recipe: Recipe) -> Iterator[str]:
    for task in recipe.tasks:
        try:
            locate_all(task.source)
        except DataError as error:
            yield f"task '{task.name}': {error}"


def _repeated_names(recipe: Recipe) -> Iterator[str]:
    names = [task.name for task in recipe.tasks]
    if len(set(names)) < len(names):
        yield f"tasks: names must differ, found {names}"
    for name in names:
        if name in _FILES:
            yield f"task '{name}': its answers would replace {name}.csv of a run; rename it"
        if f"{name}-answers" in names:
            yield f"tasks: '{name}-answers' would be filed as the answers of '{name}'; rename it"


def _experts(recipe: Recipe) -> Iterator[str]:
    """Yield the names of experts that cannot be, and tasks whose expert there is not."""
    names, trained = recipe.expert_names, [task.name for task in recipe.trained]
    for name in recipe.experts:
        if name in (OWN, NO_EXPERT) or name != name.strip() or not name:
            yield (
                f"experts: '{name}' cannot be a name: it must not be empty, begin or end with a "
                f"space, or be '{OWN}' or '{NO_EXPERT}', which tasks say for other things"
            )
        if name in trained:
            yield (
                f"experts: task '{name}' trains an expert of this name; choose another one, or let "
                f"the task have the given one (expert: {name})"
            )
    for name in names:
        if f"{name}-answers" in names:
            yield f"experts: '{name}-answers' would be filed as the answers of '{name}'; rename it"
    known = ", ".join(recipe.experts) or "there are none"
    for task in recipe.routed:
        if task.expert not in (OWN, *recipe.experts):
            yield (
                f"task '{task.name}': there is no expert '{task.expert}'"
                f"{did_you_mean(task.expert, recipe.experts)}; a task's expert is '{OWN}', "
                f"'{NO_EXPERT}' or one of `experts`: {known}"
            )
    if not recipe.routed:
        yield (
            "tasks: none has an expert, so there is nothing to train the gates on; say which "
            "expert is right for one of them (expert: NAME)"
        )


def _layers_and_lengths(recipe: Recipe) -> Iterator[str]:
    """Yield what the recipe asks of its base that it does not have.

    The bases that come with loramix compute positions and have the usual layers.
    """
    if recipe.base.name in loading.base_names() and recipe.lora.targets is None:
        return
    from loramix.experiment.base_problems import base_problems  # torch takes seconds

    yield from base_problems(recipe)


def _given(recipe: Recipe) -> Iterator[str]:
    """Yield the given adapters that cannot be had, or not be mixed on this base."""
    if recipe.experts:
        from loramix.experiment.given import given_problems  # reads tensors: torch takes seconds

        yield from given_problems(recipe)


def _missing_base(recipe: Recipe) -> Iterator[str]:
    """Yield that there is no such base, or why it cannot be loaded as the recipe says."""
    base = recipe.base
    for problem in loading.spreading_problems(base.name, base.device_map, base.quantisation):
        yield f"base.{problem}"
    if recipe.base.name in loading.base_names():
        return
    try:
        loading.resolve_revision(recipe.base.name, recipe.base.revision)
    except LoramixError as error:
        yield f"base.name: {error}"


def _chats(recipe: Recipe) -> Iterator[str]:
    """Yield why the recipe's prompts, or its conversations, cannot go through a chat template."""
    if not recipe.base.chat:
        for task in recipe.tasks:
            if task.conversational:
                yield (
                    f"task '{task.name}': its conversations need the base's chat template; "
                    "set base.chat=true, with a base that has one"
                )
        return
    try:
        tokenizer = loading.load_tokenizer(recipe.base.name, revision=recipe.base.revision)
    except LoramixError:
        return  # a missing base is a problem of its own
    problem = chat_problem(tokenizer)
    if problem is not None:
        yield f"base.chat: {problem}"


def _gates(recipe: Recipe) -> Iterator[str]:
    """Yield the problems of the gates that the run itself trains."""
    yield from _of_gates(recipe, recipe.gate, "gate")
    if recipe.gate.context == "reference":
        yield (
            "gate.context: the reference gate cannot generate, so a run ends with another one "
            "('prompt'); to compare with it, name it in comparison.mixtures"
        )


def _mixtures(recipe: Recipe) -> Iterator[str]:
    """Yield the problems of the mixtures of the comparison."""
    try:
        mixtures = recipe.mixtures()
    except ValidationError as error:
        for item in error.errors():
            yield _of_mixture(recipe, item)
        return
    taken = run_labels(recipe)
    for name, spec in mixtures.items():
        yield from _of_gates(recipe, spec, f"comparison.mixtures.{name}")
        if name in taken:
            yield f"comparison.mixtures: '{name}' is another model's name"


def _of_gates(recipe: Recipe, gate: GateSpec, key: str) -> Iterator[str]:
    """Yield the settings of these gates that this recipe's experts and base do not allow."""
    # the base's kind matters to `arrow` alone; to learn it may need a download
    found = gate_problems(
        gate.config,
        experts=len(recipe.expert_names),
        init=gate.init,
        encoder_decoder=gate.init == "arrow" and _is_encoder_decoder(recipe),
    )
    for setting, problem in found:
        yield f"{key}.{setting}: {problem}"
    idle = [name for name in recipe.expert_names if name not in recipe.own_experts.values()]
    if gate.init in ("prototype", "mean") and idle:
        yield (
            f"{key}.init: '{gate.init}' takes prompts of every expert, and no task has the expert "
            f"{', '.join(idle)}; give it a task (expert: {idle[0]}), or use init 'zero' or 'arrow'"
        )


def _is_encoder_decoder(recipe: Recipe) -> bool:
    try:
        config = loading.load_config(recipe.base.name, revision=recipe.base.revision)
    except LoramixError:
        return False  # a missing base is a problem of its own
    return bool(config.is_encoder_decoder)


def _of_mixture(recipe: Recipe, error: ErrorDetails) -> str:
    """Return a validation error of a mixture in a recipe's words.

    The first mixture with this setting is named: pydantic tells the setting alone.
    """
    setting = str(error["loc"][0]) if error["loc"] else "gate"
    changes = recipe.comparison.mixtures
    name = next((name for name, changed in changes.items() if setting in changed), "?")
    said = error["msg"]
    if error["type"] == "extra_forbidden":
        said = f"unknown key{did_you_mean(setting, GateSpec.model_fields)}"
    return f"comparison.mixtures.{name}.{setting}: {said}"
