"""The steps of a run: what each depends on, what it leaves, and what it does."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loramix.data.leaks import RECORD
from loramix.data.tasks import Task
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import CHECKPOINTS, ROUTING_STEPS, TEST_LOSS, Layout
from loramix.experiment.stages import benchmark, evaluate, finetune, gate, lora, prepare, report
from loramix.storage.card import METRICS

Settings = dict[str, object]
_DATA_KEYS = {
    "name",
    "source",
    "revision",
    "split",
    "input_column",
    "target_column",
    "choices_column",
    "empty_column",
    "cleaning",
    "samples",
}
PROMPT_KEYS = {"name", "prompt", "max_input_tokens", "max_new_tokens"}
METRIC_KEYS = {"name", "metrics"}


@dataclass(frozen=True)
class Node:
    """One step of a stage. A model's training and its answers are two, so that other questions need
    no new training.

    `settings` is what the step depends on besides the steps in `needs`. `outputs` exist once it is
    done; `scratch` is what it keeps until then.
    """

    key: str
    stage: str
    settings: Settings
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]
    work: Callable[[], None]
    scratch: Path | None = None


def graph(recipe: Recipe, layout: Layout, sources: Mapping[str, str]) -> list[Node]:
    """Return the run's nodes, each after those it needs; `sources` names the content of every
    task's data.
    """
    nodes = [_prepare(recipe, layout, sources), _benchmark(recipe, layout)]
    for task in recipe.tasks:
        nodes += _model(
            "finetune",
            recipe,
            layout,
            finetune.learn,
            finetune.answer,
            [task],
            ["prepare"],
            asked=[task],
        )
    for task in recipe.tasks:
        nodes += _model(
            "lora", recipe, layout, lora.learn, lora.answer, [task], ["prepare"], asked=recipe.tasks
        )
    experts = [f"lora-{task.name}" for task in recipe.tasks]
    nodes += _model(
        "gate", recipe, layout, gate.learn, gate.answer, [], experts, asked=recipe.tasks
    )
    answers = [
        node.key for node in nodes if node.key == "benchmark" or node.key.endswith("-answers")
    ]
    return [*nodes, _evaluate(recipe, layout, answers), _report(recipe, layout)]


def _prepare(recipe: Recipe, layout: Layout, sources: Mapping[str, str]) -> Node:
    settings: Settings = {
        "samples": {"samples": recipe.samples, "seed": recipe.seed},
        "sources": list(sources.values()),
        "tasks": part(recipe.tasks, _DATA_KEYS),
    }
    outputs = (layout.manifest, layout.folder("prepare") / "counts.csv")
    return Node("prepare", "prepare", settings, (), outputs, partial(prepare.run, recipe, layout))


def _benchmark(recipe: Recipe, layout: Layout) -> Node:
    settings = {**_asked(recipe, recipe.tasks), "base": recipe.base.model_dump(mode="json")}
    outputs = _answer_files(layout.folder("benchmark"), recipe.tasks)
    return Node(
        "benchmark",
        "benchmark",
        settings,
        ("prepare",),
        outputs,
        partial(benchmark.answer, recipe, layout),
    )


def _model(
    stage: str,
    recipe: Recipe,
    layout: Layout,
    learn: Callable[..., None],
    answer: Callable[..., None],
    own: Sequence[Task],
    needs: Sequence[str],
    *,
    asked: Sequence[Task],
) -> list[Node]:
    """Return the training of one model, on its `own` task or on all, and its answers to the tasks
    `asked`.
    """
    name = own[0].name if own else None
    key, folder = f"{stage}-{name}" if name else stage, layout.folder(stage, name)
    settings: Settings = {
        **recipe.model_dump(mode="json", include={stage, "base", "seed"}),
        "prompts": part(own or recipe.tasks, PROMPT_KEYS),
    }
    kept = [
        "models",
        "losses.csv",
        "losses.png",
        RECORD,
        *(["auxiliary.csv", ROUTING_STEPS] if stage == "gate" else []),
    ]
    files = _answer_files(folder, asked) + ((folder / "weights.csv",) if stage == "gate" else ())
    return [
        Node(
            key,
            stage,
            settings,
            tuple(needs),
            tuple(folder / name for name in kept),
            partial(learn, recipe, layout, *own),
            scratch=folder / CHECKPOINTS,
        ),
        Node(
            f"{key}-answers",
            stage,
            _asked(recipe, asked),
            (key,),
            files,
            partial(answer, recipe, layout, *own),
        ),
    ]


def _evaluate(recipe: Recipe, layout: Layout, needs: Sequence[str]) -> Node:
    settings = {
        "metrics": part(recipe.tasks, METRIC_KEYS),
        **recipe.model_dump(mode="json", include={"evaluation"}),
    }
    outputs = tuple(layout.root / f"{name}.csv" for name in evaluate.tables(recipe))
    return Node(
        "evaluate",
        "evaluate",
        settings,
        tuple(needs),
        outputs,
        partial(evaluate.run, recipe, layout),
    )


def _report(recipe: Recipe, layout: Layout) -> Node:
    outputs = (layout.root / "report.html", layout.folder("gate") / "models" / METRICS)
    return Node(
        "report",
        "report",
        {"name": recipe.name},
        ("evaluate",),
        outputs,
        partial(report.run, recipe, layout),
    )


def _asked(recipe: Recipe, tasks: Sequence[Task]) -> Settings:
    return {
        **recipe.model_dump(mode="json", include={"generation"}),
        "prompts": part(tasks, PROMPT_KEYS),
    }


def _answer_files(folder: Path, tasks: Sequence[Task]) -> tuple[Path, ...]:
    return (*(folder / f"{task.name}.csv" for task in tasks), folder / TEST_LOSS)


def part(tasks: Iterable[Task], keys: set[str]) -> list[Settings]:
    """Return those settings of the tasks that one kind of step depends on."""
    return [task.model_dump(mode="json", include=keys) for task in tasks]
