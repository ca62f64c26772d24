"""Recipes: one YAML file that says what a run does, checked as a whole before any work."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loramix.config import GateConfig
from loramix.errors import DataError, LoramixError, RecipeError, did_you_mean
from loramix.sources import locate
from loramix.tasks import BUILT_IN, Task

STAGES = ("prepare", "benchmark", "finetune", "lora", "gate", "evaluate", "report")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSpec(_Strict):
    """Which base model, in which number format, and whether prompts use the tokenizer's chat template."""

    name: str = "smollm2-135m"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: bool = False


class TrainSpec(_Strict):
    """How to train: at most `epochs` passes, stopping after `patience` epochs without a better validation loss.

    `train_samples` and `validation_samples` bound the samples used of every task; None uses the whole split.
    """

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adafactor", "adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    patience: int = Field(default=5, ge=1)
    train_samples: int | None = Field(default=None, ge=1)
    validation_samples: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False


class FinetuneSpec(TrainSpec):
    """Full finetuning: every parameter of the base."""

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(default=3e-4, gt=0)


class LoraSpec(TrainSpec):
    """One LoRA adapter per task. `targets` are names of linear layers; None: q, k, v and o of every attention block."""

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(default=1e-3, gt=0)
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class GateSpec(TrainSpec, GateConfig):
    """The gates of the mixture and how to train them.

    init: how they start: at the uniform mixture (`zero`), at the `prototype` of each task's first training prompts, or
        at the directions that each adapter amplifies most (`arrow`); see `loramix.prototypes`.
    entropy, balance, supervised: coefficients of the auxiliary losses, see `loramix.auxiliary`.
    """

    learning_rate: float = Field(default=3e-3, gt=0)
    patience: int = Field(default=10, ge=1)
    context: Literal["prompt", "running", "token"] = "prompt"  # the reference gate cannot generate
    init: Literal["zero", "prototype", "arrow"] = "zero"
    entropy: float = Field(default=0.0, ge=0)
    balance: float = Field(default=0.0, ge=0)
    supervised: float = Field(default=0.0, ge=0)

    @property
    def config(self) -> GateConfig:
        """The settings of the gates alone."""
        return GateConfig.model_validate(self.model_dump(include=set(GateConfig.model_fields)))


class GenerationSpec(_Strict):
    """How answers are generated; how long they may be is the task's `max_new_tokens`."""

    batch_size: int = Field(default=16, ge=1)
    num_beams: int = Field(default=1, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    test_samples: int | None = Field(default=None, ge=1)


class EvaluationSpec(_Strict):
    """The encoder of BERTScore: a name or folder; `minilm-l6` is the embedded one."""

    encoder: str = "minilm-l6"


class Recipe(_Strict):
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

    def to_yaml(self) -> str:
        """Return the resolved recipe: every setting spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped() -> dict[str, Path]:
    """Return the recipes that come with loramix, by name."""
    folder = Path(str(files("loramix") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe from a shipped name or a file, with `key=value` overrides (`gate.hidden=4`).

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
        problems += [_explain(item["loc"], item["type"], item["msg"], item.get("input")) for item in error.errors()]
    problems += [problem for task in (recipe.tasks if recipe else ()) if (problem := _missing_source(task))]
    if recipe:
        problems += _contradictions(recipe)
    if recipe is None or problems:
        raise RecipeError(f"{source} cannot be run:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return recipe


def _read(source: str) -> dict[str, object]:
    known = shipped()
    path = known.get(source, Path(source))
    if not path.is_file():
        raise RecipeError(
            f"there is no recipe '{source}'{did_you_mean(source, known)}: neither a file nor one of {', '.join(known)}"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} holds no settings; a recipe is a YAML mapping with name, base and tasks")
    return settings


def _override(settings: dict[str, object], override: str) -> str | None:
    """Set `a.b=value` in `settings`; tasks are addressed by their name. Return the problem, if there is one."""
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
        item = {"use": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else entry
        if not isinstance(item, dict) or "use" not in item:
            resolved.append(item)
            continue
        name = str(item.pop("use"))
        if name not in BUILT_IN:
            problems.append(
                f"tasks: no built-in task '{name}'{did_you_mean(name, BUILT_IN)}; there are {', '.join(BUILT_IN)}"
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
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
    return list(model.model_fields)


def _missing_source(task: Task) -> str | None:
    try:
        locate(task.source)
    except DataError as error:
        return f"task '{task.name}': {error}"
    return None


def _contradictions(recipe: Recipe) -> list[str]:
    from loramix.bases import base_names, resolve_revision

    problems = []
    names = [task.name for task in recipe.tasks]
    if len(set(names)) < len(names):
        problems.append(f"tasks: names must differ, found {names}")
    if recipe.base.name not in base_names():
        try:
            resolve_revision(recipe.base.name, recipe.base.revision)
        except LoramixError as error:
            problems.append(f"base.name: {error}")
    return problems + _gate_problems(recipe)


def _gate_problems(recipe: Recipe) -> list[str]:
    """Return what the gates of this recipe could not do."""
    from loramix.bases import load_config

    gate, experts, problems = recipe.gate, len(recipe.tasks), []
    if gate.activation == "top-k" and gate.k > experts:
        problems.append(f"gate.k: keeps {gate.k} experts, but there are {experts} tasks; use {experts} or less")
    needed = {"zero": 1, "prototype": experts, "arrow": 2 * experts}[gate.init]
    if gate.hidden < needed:
        problems.append(f"gate.hidden: init '{gate.init}' needs {needed} hidden units for {experts} tasks")
    if gate.init != "arrow" or gate.context != "prompt":
        return problems
    try:
        seq2seq = load_config(recipe.base.name, revision=recipe.base.revision).is_encoder_decoder
    except LoramixError:
        return problems  # a missing base is a problem of its own, found above
    if seq2seq:
        problems.append(
            "gate.init: 'arrow' needs gates that read their layer's input, and a decoder's prompt gates read the "
            "encoder's output; use init 'prototype', or context 'token'"
        )
    return problems
