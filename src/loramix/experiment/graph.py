"""The stage graph: the steps of a run, each with its settings, needs, outputs and work."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loramix.data.catalogue import BUILT_IN
from loramix.data.leaks import RECORD
from loramix.data.tasks import Task, Whitespace
from loramix.experiment.given import digests
from loramix.experiment.recipe import BaseSpec, GateSpec, Recipe
from loramix.experiment.run import (
    CHECKPOINTS,
    LOSSES,
    MODELS,
    ROUTING_STEPS,
    TEST_LOSS,
    WEIGHTS,
    Run,
)
from loramix.experiment.stages import benchmark, evaluate, finetune, gate, lora, prepare, report
from loramix.experiment.training.gate_trainer import AUXILIARY_LOSSES
from loramix.metrics.words import TOKENIZER
from loramix.storage.card import METRICS
from loramix.storage.files import path_part

Settings = dict[str, object]

# A task's fields by what they change. Prepare depends on all that stand nowhere else, so that a new
# field redoes too much rather than too little. A task's name belongs to all groups.
PROMPT_FIELDS = frozenset({"name", "prompt", "max_input_tokens", "max_new_tokens"})
METRIC_FIELDS = frozenset({"name", "metrics"})
TEST_SET_FIELDS = frozenset({"paraphrases", "inverse"})  # of comparisons
EXPERT_FIELDS = frozenset({"expert"})  # see `expert_settings`
DATA_FIELDS = (
    Task.model_fields.keys() - PROMPT_FIELDS - METRIC_FIELDS - TEST_SET_FIELDS - EXPERT_FIELDS
) | {"name"}
# Fields of a task that finished runs know nothing of, with the value that is as if there were none.
OLD_WAYS: Settings = {
    "format": "columns",
    "config": None,
    "validation_split": None,
    "test_split": None,
}
# And those of gates.
OLD_GATES: Settings = {
    "carry": False,
    "first_pass": False,
    "pooling": "mean",
    "examples": 16,
    "rates": "equal",
    "keep_start": False,
}
_INITS = {"mean": "prototype", "prototype": "worded prototype"}  # what finished runs call them

TRAINING_OUTPUTS = (LOSSES, "losses.png", RECORD)
GATE_OUTPUTS = (MODELS, *TRAINING_OUTPUTS, AUXILIARY_LOSSES, ROUTING_STEPS)


@dataclass(frozen=True)
class Step:
    """One step of a stage.

    A model's training and its answers are two steps: other questions need no new training.

    settings: all that the step depends on besides the steps in `needs`.
    outputs: the files and folders that exist once it is done.
    scratch: a folder for the time until then, from which a killed step goes on.
    together: whether several processes do the work together; else rank 0 does it.
    """

    key: str
    stage: str
    settings: Settings
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]
    work: Callable[[], None]
    scratch: Path | None = None
    together: bool = False


def run_steps(run: Run, sources: Mapping[str, str]) -> list[Step]:
    """Return the steps of a run, each after those it needs.

    sources: a fingerprint of every task's data, by task.
    """
    recipe = run.recipe
    given = [_given(run, name) for name in recipe.experts]
    trained: list[Step] = []
    for task in recipe.tasks:
        trained += _finetune(run, task)
    for task in recipe.trained:
        trained += _lora(run, task)
    for step, name in zip(given, recipe.experts, strict=True):
        trained.append(_expert_answers(run, step, name))
    trained += _gate(run)
    answers = [step.key for step in trained if step.key.endswith("-answers")]
    return [
        *given,  # first: what cannot be mixed is refused before hours of training
        _prepare(run, sources),
        _benchmark(run),
        *trained,
        _evaluate(run, needs=["benchmark", *answers]),
        _report(run),
    ]


def _prepare(run: Run, sources: Mapping[str, str]) -> Step:
    settings: Settings = {
        "samples": {"samples": run.recipe.samples, "seed": run.recipe.seed},
        "sources": list(sources.values()),
        "tasks": task_settings(run.recipe.tasks, DATA_FIELDS),
    }
    outputs = (run.manifest_file, run.folder("prepare") / prepare.COUNTS)
    return Step("prepare", "prepare", settings, (), outputs, partial(prepare.run, run))


def _benchmark(run: Run) -> Step:
    tasks = run.recipe.tasks
    # the other models' answers depend on the base through their training
    settings = {**_asking(run, tasks), "base": base_settings(run.recipe.base)}
    outputs = _answer_files(run.folder("benchmark"), tasks)
    work = partial(benchmark.answer, run)
    return Step("benchmark", "benchmark", settings, ("prepare",), outputs, work, together=True)


def _finetune(run: Run, task: Task) -> list[Step]:
    key, folder = f"finetune-{task.name}", run.folder("finetune", task.name)
    learn = Step(
        key,
        "finetune",
        _training(run, "finetune", [task]),
        ("prepare",),
        _outputs(folder, MODELS, *TRAINING_OUTPUTS),
        partial(finetune.learn, run, task),
        scratch=folder / CHECKPOINTS,
        together=True,
    )
    return [learn, _answers(run, learn, folder, [task], partial(finetune.answer, run, task))]


def _lora(run: Run, task: Task) -> list[Step]:
    folder = run.folder("lora", task.name)
    learn = Step(
        lora_step(task.name),
        "lora",
        _training(run, "lora", [task]),
        ("prepare",),
        _outputs(folder, MODELS, *TRAINING_OUTPUTS),
        partial(lora.learn, run, task),
        scratch=folder / CHECKPOINTS,
        together=True,
    )
    return [learn, _expert_answers(run, learn, task.name)]


def _given(run: Run, name: str) -> Step:
    """Return the step that takes a given adapter over: again when its files change."""
    spec = run.recipe.experts[name]
    settings: Settings = {
        "base": base_settings(run.recipe.base),
        "adapter": {"files": digests(name, spec), "lossy": list(spec.lossy)},
    }
    work = partial(lora.take_over, run, name)
    return Step(lora_step(name), "lora", settings, (), (run.adapter(name),), work)


def _expert_answers(run: Run, learn: Step, name: str) -> Step:
    """Return the step in which an expert answers all tasks, its own and the others."""
    tasks, work = run.recipe.tasks, partial(lora.answer, run, name)
    step = _answers(run, learn, run.folder("lora", name), tasks, work)
    return step if "prepare" in learn.needs else replace(step, needs=("prepare", *step.needs))


def _gate(run: Run) -> list[Step]:
    tasks, folder = run.recipe.tasks, run.folder("gate")
    learn = Step(
        "gate",
        "gate",
        {
            **_training(run, "gate", run.recipe.routed),
            "gate": gate_settings(run.recipe.gate),
            **expert_settings(run.recipe),
        },
        expert_steps(run.recipe),
        _outputs(folder, *GATE_OUTPUTS),
        partial(gate.learn, run),
        scratch=folder / CHECKPOINTS,
        together=True,
    )
    answer = _answers(run, learn, folder, tasks, partial(gate.answer, run), WEIGHTS)
    return [learn, answer]


def _answers(
    run: Run,
    learn: Step,
    folder: Path,
    tasks: Sequence[Task],
    work: Callable[[], None],
    *more: str,
) -> Step:
    """Return the step in which a trained model answers `tasks`.

    more: outputs of the step beside the answers.
    """
    outputs = _answer_files(folder, tasks) + _outputs(folder, *more)
    key, settings = f"{learn.key}-answers", _asking(run, tasks)
    return Step(key, learn.stage, settings, (learn.key,), outputs, work, together=True)


def _evaluate(run: Run, *, needs: Sequence[str]) -> Step:
    settings = {
        "metrics": task_settings(run.recipe.tasks, METRIC_FIELDS),
        **run.recipe.model_dump(mode="json", include={"evaluation"}),
        "tokenizer": TOKENIZER,
    }
    outputs = tuple(run.root / table.file for table in evaluate.tables(run.recipe))
    work = partial(evaluate.run, run)
    return Step("evaluate", "evaluate", settings, tuple(needs), outputs, work)


def _report(run: Run) -> Step:
    # METRICS lies among the gate's outputs: a gate trained anew removes it, and redoes the report
    outputs = (run.root / "report.html", run.folder("gate") / MODELS / METRICS)
    settings: Settings = {"name": run.recipe.name}
    return Step("report", "report", settings, ("evaluate",), outputs, partial(report.run, run))


def lora_step(expert: str) -> str:
    """Return the key of the step that trains an expert's adapter, or takes a given one over."""
    return f"lora-{path_part(expert)}"


def expert_steps(recipe: Recipe) -> tuple[str, ...]:
    """Return the keys of the steps that leave the samples and all experts."""
    steps = tuple(map(lora_step, recipe.expert_names))
    return ("prepare", *steps) if recipe.experts else steps  # trained experts need `prepare`


def expert_settings(recipe: Recipe) -> Settings:
    """Return which experts there are and whose tasks are whose, where a task could have another
    than the one that is trained on it.
    """
    if recipe.trained == recipe.tasks and not recipe.experts:
        return {}
    return {"experts": {"order": recipe.expert_names, "of tasks": recipe.own_experts}}


def task_settings(tasks: Iterable[Task], fields: Iterable[str]) -> list[Settings]:
    """Return these fields of every task."""
    return [_as_before(task, task.model_dump(mode="json", include=set(fields))) for task in tasks]


def base_settings(spec: BaseSpec) -> Settings:
    """Return the settings of a base, without those that change nothing: where it lies, and younger
    ones, which must not redo finished runs.
    """
    whole = {"quantisation"} if spec.quantisation is None else set[str]()
    return spec.model_dump(mode="json", exclude={"device_map"} | whole)


def gate_settings(spec: GateSpec) -> Settings:
    """Return the settings of gates and of their training, without younger ones that change nothing:
    they must not redo finished runs.
    """
    settings = spec.model_dump(mode="json")
    kept = {name: value for name, value in settings.items() if OLD_GATES.get(name, ...) != value}
    return {**kept, "init": _INITS.get(spec.init, spec.init)}


def earlier_whitespace(task: Task) -> Whitespace:
    """Return what was done to the white space of a task before it could be chosen."""
    for known in BUILT_IN.values():
        if known.source == task.source:
            return known.cleaning.whitespace
    return "lines" if "haiku" in task.metrics else "collapse"


def _as_before(task: Task, settings: Settings) -> Settings:
    """Leave out younger settings that change nothing: they must not redo finished runs."""
    kept = {name: value for name, value in settings.items() if OLD_WAYS.get(name, ...) != value}
    cleaning = kept.get("cleaning")
    if isinstance(cleaning, dict) and cleaning["whitespace"] == earlier_whitespace(task):
        kept["cleaning"] = {key: cleaning[key] for key in cleaning if key != "whitespace"}
    return kept


def _training(run: Run, stage: str, tasks: Sequence[Task]) -> Settings:
    """Return the settings of a stage's training on `tasks`."""
    return {
        **run.recipe.model_dump(mode="json", include={stage, "seed"}),
        "base": base_settings(run.recipe.base),
        "prompts": task_settings(tasks, PROMPT_FIELDS),
    }


def _asking(run: Run, tasks: Sequence[Task]) -> Settings:
    """Return the settings of a model's answers to `tasks`."""
    return {
        **run.recipe.model_dump(mode="json", include={"generation"}),
        "prompts": task_settings(tasks, PROMPT_FIELDS),
    }


def _answer_files(folder: Path, tasks: Sequence[Task]) -> tuple[Path, ...]:
    return _outputs(folder, *(f"{task.name}.csv" for task in tasks), TEST_LOSS)


def _outputs(folder: Path, *names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)
