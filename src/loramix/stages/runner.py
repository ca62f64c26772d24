"""The runner: does the stages in order, skips what is done, and redoes what depends on a changed setting.

Every stage has a fingerprint of its settings and of the stages that it reads. `.stages/<key>.json` keeps the one that a
stage was started with and whether it finished, so that a killed run goes on where it was.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from loramix.atomic import write_text
from loramix.errors import StageError, did_you_mean
from loramix.recipe import STAGES, Recipe
from loramix.sources import source_fingerprint
from loramix.stages.layout import Layout

log = logging.getLogger("loramix")


@dataclass(frozen=True)
class Node:
    """One stage of one run; finetune and lora have one for every task. `outputs` is what starting afresh deletes."""

    stage: str
    task: str | None
    settings: dict[str, object]
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]
    work: Callable[[], None]

    @property
    def key(self) -> str:
        """The node's name: the stage, and its task if it has one."""
        return f"{self.stage}-{self.task}" if self.task else self.stage


def run(recipe: Recipe, root: Path, *, stage: str | None = None) -> Layout:
    """Run the recipe's stages into folder `root`, or one stage and what it needs; return the folder's layout."""
    if stage is not None and stage not in STAGES:
        raise StageError(
            f"there is no stage '{stage}'{did_you_mean(stage, STAGES)}; the stages are {', '.join(STAGES)}"
        )
    layout = Layout(root)
    write_text(root / "recipe.yaml", recipe.to_yaml())
    write_text(root / "environment.json", json.dumps({"versions": versions()}, indent=2))
    nodes = graph(recipe, layout)
    wanted = _closure(nodes, [node.key for node in nodes if stage in (None, node.stage)])
    fingerprints: dict[str, str] = {}
    for node in nodes:
        fingerprints[node.key] = _fingerprint(node, fingerprints)
        if node.key in wanted:
            _do(node, fingerprints[node.key], root)
    return layout


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: version(name) for name in ("loramix", "torch", "transformers", "peft", "datasets")}


def graph(recipe: Recipe, layout: Layout) -> list[Node]:
    """Return the run's nodes, each after those it needs."""
    from loramix.stages import benchmark, evaluate, finetune, gate, lora, prepare, report

    settings = recipe.model_dump(mode="json")
    common = {key: settings[key] for key in ("base", "seed", "generation")}
    tasks = {task["name"]: task for task in settings["tasks"]}
    sources = {task.name: source_fingerprint(task) for task in recipe.tasks}
    data = {"tasks": settings["tasks"], "samples": recipe.samples, "seed": recipe.seed, "sources": sources}

    def node(
        stage: str, work: Callable[[], None], needs: Sequence[str], own: dict[str, object], task: str | None = None
    ) -> Node:
        outputs: tuple[Path, ...] = (layout.folder(stage, task),)
        if stage in ("evaluate", "report"):
            names = ("rouge.csv", "bertscore.csv", "syllables.csv") if stage == "evaluate" else ("report.html",)
            outputs = tuple(layout.root / name for name in names)
        return Node(stage, task, own, tuple(needs), outputs, work)

    nodes = [node("prepare", partial(prepare.run, recipe, layout), [], data)]
    nodes.append(node("benchmark", partial(benchmark.run, recipe, layout), ["prepare"], common))
    for task in recipe.tasks:
        own = {**common, "task": tasks[task.name], "finetune": settings["finetune"]}
        nodes.append(node("finetune", partial(finetune.run, recipe, layout, task), ["prepare"], own, task.name))
    for task in recipe.tasks:
        own = {**common, "task": tasks[task.name], "lora": settings["lora"]}
        nodes.append(node("lora", partial(lora.run, recipe, layout, task), ["prepare"], own, task.name))
    experts = [each.key for each in nodes if each.stage == "lora"]
    nodes.append(node("gate", partial(gate.run, recipe, layout), experts, {**common, "gate": settings["gate"]}))
    answered = [each.key for each in nodes if each.stage != "prepare"]
    nodes.append(
        node("evaluate", partial(evaluate.run, recipe, layout), answered, {"evaluation": settings["evaluation"]})
    )
    nodes.append(node("report", partial(report.run, recipe, layout), ["evaluate"], {"name": recipe.name}))
    return nodes


def _closure(nodes: Sequence[Node], keys: Sequence[str]) -> set[str]:
    """Return `keys` and everything that they need."""
    needs = {node.key: node.needs for node in nodes}
    wanted, open_keys = set(), list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in wanted:
            wanted.add(key)
            open_keys += needs[key]
    return wanted


def _fingerprint(node: Node, known: dict[str, str]) -> str:
    content = {"stage": node.key, "settings": node.settings, "needs": [known[key] for key in node.needs]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _do(node: Node, fingerprint: str, root: Path) -> None:
    """Do one node unless it is done; go on with a started one, start afresh where the settings changed."""
    marker = root / ".stages" / f"{node.key}.json"
    state = json.loads(marker.read_text()) if marker.is_file() else {}
    if state == {"fingerprint": fingerprint, "finished": True} and all(path.exists() for path in node.outputs[:1]):
        log.info("%s: already done", node.key)
        return
    if state.get("fingerprint") != fingerprint:
        for path in node.outputs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif not state.get("finished"):
        log.info("%s: going on where it was interrupted", node.key)
    write_text(marker, json.dumps({"fingerprint": fingerprint, "finished": False}))
    started = time.monotonic()
    node.work()
    write_text(marker, json.dumps({"fingerprint": fingerprint, "finished": True}))
    log.info("%s: done in %.0f s", node.key, time.monotonic() - started)
