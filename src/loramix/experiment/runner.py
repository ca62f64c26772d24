"""The runner: does the steps in order, except finished ones whose settings are unchanged.

Every step has a fingerprint of its settings and of the steps that it reads. `.stages/<key>.json`
keeps the one that a step was started with and whether it finished, so that a killed run goes on
where it was.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loramix.bases.loading import resolve_revision
from loramix.data.sources import pinned, source_fingerprint
from loramix.errors import StageError, did_you_mean
from loramix.experiment import given
from loramix.experiment.executors.in_order import in_order
from loramix.experiment.executors.job import Executor, Job
from loramix.experiment.graph import Step, earlier_whitespace, run_steps
from loramix.experiment.processes import join, lost_in_words, processes, refuse_several_processes
from loramix.experiment.recipe import STAGES, Recipe
from loramix.experiment.run import Run
from loramix.experiment.sizes import check_room, refuse_uneven
from loramix.storage.files import sha256, write_text
from loramix.storage.yaml_texts import read_yaml

log = logging.getLogger("loramix")
LOCK = ".lock"  # of a run folder: one process at a time
RECIPE = "recipe.yaml"  # the resolved recipe, in the folder of a run or a comparison


def run(
    recipe: Recipe,
    root: Path,
    *,
    stage: str | None = None,
    wait: bool = False,
    executor: Executor = in_order,
) -> Run:
    """Run the recipe's stages into folder `root`; return the run with its Hub revisions pinned.

    stage: the only stage to run, with those it needs; None: all.
    wait: for another process that runs in the folder; else it raises BusyError.
    executor: who does the steps.
    In each of several processes that torchrun or accelerate launch has started, this is called
    alike; see `loramix.experiment.processes`.
    """
    if stage is not None and stage not in STAGES:
        raise StageError(
            f"there is no stage '{stage}'{did_you_mean(stage, STAGES)}; the stages are "
            f"{', '.join(STAGES)}"
        )
    if executor is not in_order:
        refuse_several_processes("a run on a cluster")
    ranks = join()
    with lost_in_words(), ranks.locked(root, root / LOCK, wait=wait):
        run = Run(ranks.once(lambda: pin(recipe, root / RECIPE)), root)
        steps = run_steps(run, ranks.once(lambda: begin(run.recipe, root)))
        keys = [step.key for step in steps if stage in (None, step.stage)]
        alone = executor is in_order
        ranks.once(lambda: _check(run, unfinished(steps, keys, root), side_by_side=not alone))
        do_steps(steps, keys, root, executor)
    return run


def _check(run: Run, steps: Sequence[Step], *, side_by_side: bool) -> None:
    """Raise an error for what keeps these steps from their end: batches, devices or the disk."""
    if processes().size > 1 and run.recipe.base.device_map is not None:
        raise StageError(
            f"base.device_map spreads the base over the devices of one process, and there are "
            f"{processes().size}, each of which holds the whole base; leave it out, or start one "
            "process: loramix run …"
        )
    refuse_uneven(run.recipe, {step.stage for step in steps if step.scratch}, processes().size)
    check_room(run.root, [(run.recipe, steps)], side_by_side=side_by_side)


def begin(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Write the resolved recipe, package versions and the fingerprints of data and given adapters
    to `folder`.

    Returns the fingerprints of the data by task.
    """
    sources = {task.name: source_fingerprint(task) for task in recipe.tasks}
    environment: dict[str, object] = {"versions": versions(), "sources": sources}
    if recipe.experts:
        environment["experts"] = {
            name: given.digests(name, spec) for name, spec in recipe.experts.items()
        }
    write_text(folder / RECIPE, recipe.to_yaml())
    write_text(folder / "environment.json", json.dumps(environment, indent=2))
    return sources


def do_steps(
    steps: Sequence[Step], keys: Sequence[str], root: Path, executor: Executor = in_order
) -> None:
    """Do the steps `keys` of the run folder `root` and all that they need, except finished ones."""
    executor(jobs(steps, keys, root), root)


def jobs(steps: Sequence[Step], keys: Sequence[str], root: Path) -> list[Job]:
    """Return the steps `keys` of the run folder `root` and all that they need, as jobs."""
    return [as_job(step, fingerprint, root) for step, fingerprint in wanted(steps, keys)]


def as_job(step: Step, fingerprint: str, root: Path, *, name: str | None = None) -> Job:
    """Return a step of the run folder `root` as a job.

    name: of its marker; None: its key.
    """
    marker = _marker(root, step) if name is None else root / ".stages" / f"{name}.json"
    finished = _is_finished(step, fingerprint, _state(marker))
    work = partial(_do, step, fingerprint, marker)
    return Job(step.key, step.stage, step.needs, work, finished, marker)


def unfinished(steps: Sequence[Step], keys: Sequence[str], root: Path) -> list[Step]:
    """Return the steps that `do_steps` would do."""
    return [
        step
        for step, fingerprint in wanted(steps, keys)
        if not _is_finished(step, fingerprint, _state(_marker(root, step)))
    ]


def wanted(steps: Sequence[Step], keys: Sequence[str]) -> list[tuple[Step, str]]:
    """Return the steps `keys` and all that they need, in their order, with their fingerprints."""
    wanted = _closure(steps, keys)
    fingerprints: dict[str, str] = {}
    for step in steps:
        # of unwanted steps too: those of later steps are made from it
        fingerprints[step.key] = fingerprint(step, fingerprints)
    return [(step, fingerprints[step.key]) for step in steps if step.key in wanted]


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {
        name: version(name) for name in ("loramix", "torch", "transformers", "peft", "datasets")
    }


def pin(recipe: Recipe, earlier: Path) -> Recipe:
    """Return the recipe with the commits of its Hub model, data and adapters.

    earlier: the file of the recipe with which the same folder was begun, if there is one: a run
        goes on with the commits that it began with, and with its tasks' white space if it began
        before that could be chosen.
    """
    earlier_tasks: set[str] = set()
    model_commits: dict[str, str | None] = {}
    data_commits: dict[str, str | None] = {}
    adapters: dict[str, dict[str, str | None]] = {}
    if earlier.is_file():
        began = _began(earlier)
        model_commits[began["base"]["name"]] = began["base"]["revision"]
        data_commits = {str(task["source"]): task["revision"] for task in began["tasks"]}
        adapters = began.get("experts", {})
        whole = {task["name"] for task in began["tasks"] if "whitespace" in task["cleaning"]}
        earlier_tasks = {task["name"] for task in began["tasks"]} - whole
    base = recipe.base
    revision = resolve_revision(base.name, base.revision or model_commits.get(base.name))
    tasks = []
    for task in recipe.tasks:
        commit = task.revision or data_commits.get(str(task.source))
        changes: dict[str, object] = {"revision": commit}
        if task.name in earlier_tasks and "whitespace" not in task.cleaning.model_fields_set:
            whitespace = earlier_whitespace(task)
            changes["cleaning"] = task.cleaning.model_copy(update={"whitespace": whitespace})
        tasks.append(pinned(task.model_copy(update=changes)))
    base = base.model_copy(update={"revision": revision})
    experts = {
        name: given.pinned(name, spec, began=adapters.get(name))
        for name, spec in recipe.experts.items()
    }
    return recipe.model_copy(update={"base": base, "experts": experts, "tasks": tuple(tasks)})


def _began(file: Path) -> dict[str, Any]:
    """Return the recipe with which a run folder was begun; StageError if it is damaged."""
    try:
        began: Any = read_yaml(file.read_text(encoding="utf-8"))
        # all that is asked of it
        _ = began["base"]["name"], began["base"]["revision"], dict(began.get("experts", {}))
        _ = [(each["name"], each["source"], each["revision"]) for each in began["tasks"]]
        _ = ["whitespace" in each["cleaning"] for each in began["tasks"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{file} is damaged: it is not the recipe that this run was begun with; put it back, "
            "or choose another folder with --out"
        ) from error
    return dict(began)


def fingerprint(step: Step, known: Mapping[str, str]) -> str:
    """Return a digest of all that a step depends on; `known` holds those of the steps it needs."""
    # package versions are left out: an update redoes nothing
    content = {
        "step": step.key,
        "settings": step.settings,
        "needs": [known[key] for key in step.needs],
    }
    return sha256(json.dumps(content, sort_keys=True))


def _closure(steps: Sequence[Step], keys: Sequence[str]) -> set[str]:
    """Return `keys` and everything that they need."""
    needs = {step.key: step.needs for step in steps}
    wanted, open_keys = set(), list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in wanted:
            wanted.add(key)
            open_keys += needs[key]
    return wanted


def _do(step: Step, fingerprint: str, marker: Path) -> None:
    """Do one step unless it is done: go on with a started one, or afresh with new settings."""
    ranks = processes()
    if not ranks.once(lambda: _begins(step, fingerprint, marker)):
        return
    started = time.monotonic()
    if step.together:
        step.work()
    else:
        ranks.once(step.work)
    ranks.once(lambda: _finish(step, fingerprint, marker))
    log.info("%s: done in %.0f s", step.key, time.monotonic() - started)


def _begins(step: Step, fingerprint: str, marker: Path) -> bool:
    """Mark a step as begun; return False if it is done already."""
    begun = {"fingerprint": fingerprint, "finished": False}
    state = _state(marker)
    if _is_finished(step, fingerprint, state):
        log.info("%s: already done", step.key)
        return False
    if state == begun:
        log.info("%s: going on where it was interrupted", step.key)
    else:
        _remove(*step.outputs, *_scratch(step))  # of other settings
    write_text(marker, json.dumps(begun))
    log.info("%s: %s", step.key, _in_words(step.settings) or "starts")
    return True


def _finish(step: Step, fingerprint: str, marker: Path) -> None:
    """Mark a step as finished."""
    write_text(marker, json.dumps({"fingerprint": fingerprint, "finished": True}))
    _remove(*_scratch(step))  # only now: a killed run goes on from it


def _scratch(step: Step) -> list[Path]:
    return [step.scratch] if step.scratch else []


def _marker(root: Path, step: Step) -> Path:
    return root / ".stages" / f"{step.key}.json"


def _state(marker: Path) -> object:
    """Return how far a step has come; a damaged marker says nothing, and the step is done anew."""
    try:
        return json.loads(marker.read_text()) if marker.is_file() else {}
    except ValueError:
        return {}


def _is_finished(step: Step, fingerprint: str, state: object) -> bool:
    finished = {"fingerprint": fingerprint, "finished": True}
    return state == finished and all(path.exists() for path in step.outputs)


def _remove(*paths: Path) -> None:
    """Remove files and folders; a link to a folder stays, and loses what is in it."""
    for path in paths:
        if path.is_symlink() and path.is_dir():
            _remove(*path.iterdir())
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _in_words(settings: Mapping[str, object]) -> str:
    """Return a step's own settings on one line, those that are set."""
    words = []
    for group, values in settings.items():
        if group != "base" and isinstance(values, dict):  # the base is the same for all steps
            words += [f"{key.replace('_', ' ')} {value}" for key, value in values.items() if value]
    return ", ".join(words)
