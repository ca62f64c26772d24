"""The runner: does the steps in order, skips what is done, and redoes what depends on a changed
setting.

Every step has a fingerprint of its settings and of the steps that it reads. `.stages/<key>.json`
keeps the one that a step was started with and whether it finished, so that a killed run goes on
where it was.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path

import yaml

from loramix.bases.loading import resolve_revision
from loramix.data.sources import pinned, source_fingerprint
from loramix.errors import StageError, did_you_mean
from loramix.experiment.graph import Node, graph
from loramix.experiment.recipe import STAGES, Recipe
from loramix.experiment.run import Layout
from loramix.storage.files import sha256, write_text

log = logging.getLogger("loramix")


def run(recipe: Recipe, root: Path, *, stage: str | None = None) -> Layout:
    """Run the recipe's stages into folder `root`, or one stage and what it needs; return the
    folder's layout.
    """
    if stage is not None and stage not in STAGES:
        raise StageError(
            f"there is no stage '{stage}'{did_you_mean(stage, STAGES)}; the stages are "
            f"{', '.join(STAGES)}"
        )
    layout = Layout(root)
    recipe = _pinned(recipe, root / "recipe.yaml")
    nodes = graph(recipe, layout, _begin(recipe, root))
    _do_all(
        nodes, _closure(nodes, [node.key for node in nodes if stage in (None, node.stage)]), root
    )
    return layout


def compare(recipe: Recipe, root: Path) -> Path:
    """Run the recipe's comparison in the run folder `root`, which may hold its experts; return the
    comparison's folder.

    Several recipes may be compared in one run folder: what they share is done once.
    """
    from loramix.comparison.compare import comparison_graph

    folder = root / "compare" / recipe.name
    recipe = _pinned(
        recipe,
        next((f for f in (folder / "recipe.yaml", root / "recipe.yaml") if f.is_file()), root),
    )
    nodes = comparison_graph(recipe, Layout(root), _begin(recipe, folder))
    _do_all(nodes, _closure(nodes, [nodes[-1].key]), root)
    return folder


def _begin(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Write the resolved recipe and what else results depend on; return what names the content of
    every task's data.
    """
    sources = {task.name: source_fingerprint(task) for task in recipe.tasks}
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(
        folder / "environment.json",
        json.dumps({"versions": versions(), "sources": sources}, indent=2),
    )
    return sources


def _do_all(nodes: Sequence[Node], wanted: Set[str], root: Path) -> None:
    fingerprints: dict[str, str] = {}
    for node in nodes:
        fingerprints[node.key] = _fingerprint(node, fingerprints)
        if node.key in wanted:
            _do(node, fingerprints[node.key], root / ".stages" / f"{node.key}.json")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {
        name: version(name) for name in ("loramix", "torch", "transformers", "peft", "datasets")
    }


def _pinned(recipe: Recipe, earlier: Path) -> Recipe:
    """Return the recipe with the commits of its Hub model and data; a run goes on with those that
    it began with.
    """
    began = (
        yaml.safe_load(earlier.read_text(encoding="utf-8"))
        if earlier.is_file()
        else {"base": {}, "tasks": []}
    )
    of_model = {began["base"].get("name"): began["base"].get("revision")}
    of_data = {task["source"]: task["revision"] for task in began["tasks"]}
    revision = resolve_revision(
        recipe.base.name, recipe.base.revision or of_model.get(recipe.base.name)
    )
    tasks = [
        pinned(task.model_copy(update={"revision": task.revision or of_data.get(task.source)}))
        for task in recipe.tasks
    ]
    base = recipe.base.model_copy(update={"revision": revision})
    return recipe.model_copy(update={"base": base, "tasks": tuple(tasks)})


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


def _fingerprint(node: Node, known: Mapping[str, str]) -> str:
    content = {
        "step": node.key,
        "settings": node.settings,
        "needs": [known[key] for key in node.needs],
    }
    return sha256(json.dumps(content, sort_keys=True))


def _do(node: Node, fingerprint: str, marker: Path) -> None:
    """Do one node unless it is done; go on with a started one, start afresh where the settings
    changed.
    """
    state = json.loads(marker.read_text()) if marker.is_file() else {}
    if state == {"fingerprint": fingerprint, "finished": True} and all(
        path.exists() for path in node.outputs
    ):
        log.info("%s: already done", node.key)
        return
    if state == {"fingerprint": fingerprint, "finished": False}:
        log.info("%s: going on where it was interrupted", node.key)
    else:
        _remove(*node.outputs, *([node.scratch] if node.scratch else []))
    write_text(marker, json.dumps({"fingerprint": fingerprint, "finished": False}))
    log.info("%s: %s", node.key, _in_words(node.settings) or "starts")
    started = time.monotonic()
    node.work()
    write_text(marker, json.dumps({"fingerprint": fingerprint, "finished": True}))
    if node.scratch:
        _remove(node.scratch)
    log.info("%s: done in %.0f s", node.key, time.monotonic() - started)


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _in_words(settings: Mapping[str, object]) -> str:
    """Return the settings of the stage on one line; what is unset or the same for all stages is
    left out.
    """
    own = [value for key, value in settings.items() if key != "base" and isinstance(value, dict)]
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for part in own for key, value in part.items() if value
    )
