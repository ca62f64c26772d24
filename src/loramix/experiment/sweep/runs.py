"""The runs of a sweep: each in a folder of its own, with steps that are the same done in one."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from loramix.errors import StageError
from loramix.experiment.executors.in_order import in_order
from loramix.experiment.executors.job import Executor, Job
from loramix.experiment.graph import Step, run_steps
from loramix.experiment.processes import refuse_several_processes
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.experiment.runner import LOCK, RECIPE, as_job, begin, pin, wanted
from loramix.experiment.sizes import check_room
from loramix.experiment.sweep.results import TRAINING, write_results
from loramix.experiment.sweep.settings import Setting
from loramix.storage.files import atomic_file, atomic_folder
from loramix.storage.locks import locked


class _Done(NamedTuple):
    """Where a step of some fingerprint is done."""

    run: str
    step: Step
    job: Job


def sweep(
    settings: Sequence[Setting],
    root: Path,
    *,
    stage: str | None = None,
    wait: bool = False,
    executor: Executor = in_order,
) -> Path:
    """Run every setting in `root`/<its name>, and write sweep.csv and sweep.html; return `root`.

    Each folder is that of a run of its own: a step that several settings share is done in one, and
    the others get its files.
    stage: the last one to run: finetune, lora or gate; None: all.
    wait: for another process that runs in the folder; else it raises BusyError.
    """
    refuse_several_processes("a sweep")
    if stage is not None and stage not in TRAINING:
        raise StageError(
            f"a sweep compares validation losses, and the stage {stage} leaves none; choose one of "
            f"{', '.join(TRAINING)}, or leave --stage out"
        )
    with ExitStack() as held:
        for folder in (root, *(root / setting.name for setting in settings)):
            held.enter_context(locked(folder, folder / LOCK, wait=wait))
        runs = _begun(settings, root)
        jobs, begun = _jobs(runs, stage)
        check_room(root, begun, side_by_side=executor is not in_order)
        executor(jobs, root)
        write_results(settings, [run for run, _ in runs], root, stage)
    return root


def _begun(settings: Sequence[Setting], root: Path) -> list[tuple[Run, list[Step]]]:
    """Return the runs of all settings with their steps; all have the same commits of the Hub."""
    runs: list[tuple[Run, list[Step]]] = []
    for setting in settings:
        folder = root / setting.name
        began = folder / RECIPE
        if runs and not began.is_file():
            began = runs[0][0].root / RECIPE
        run = Run(pin(setting.recipe, began), folder)
        runs.append((run, run_steps(run, begin(run.recipe, folder))))
    return runs


def _jobs(
    runs: Sequence[tuple[Run, list[Step]]], stage: str | None
) -> tuple[list[Job], list[tuple[Recipe, list[Step]]]]:
    """Return the jobs of all runs, each after those it needs; of the same ones, all but one take
    the other's files. And of each run, the steps that are done in it.
    """
    found: list[Job] = []
    begun: list[tuple[Recipe, list[Step]]] = []
    done = _done_before(runs, stage)
    for run, steps in runs:
        own: list[Step] = []
        name = run.root.name
        for step, fingerprint in wanted(steps, _keys(steps, stage)):
            here = replace(
                step,
                key=f"{name}/{step.key}",
                needs=tuple(f"{name}/{need}" for need in step.needs),
            )
            other = done.get(fingerprint)
            if other is None or other.run == name:
                job = as_job(here, fingerprint, run.root, name=step.key)
                done[fingerprint] = _Done(name, step, job)
                own += [] if job.finished else [step]
            else:
                job = as_job(_taken(here, other), fingerprint, run.root, name=step.key)
            found.append(job)
        begun.append((run.recipe, own))
    return _in_order(found), begun


def _done_before(runs: Sequence[tuple[Run, list[Step]]], stage: str | None) -> dict[str, _Done]:
    """Return the steps that an earlier sweep has finished in one of the folders, by fingerprint."""
    done: dict[str, _Done] = {}
    for run, steps in runs:
        for step, fingerprint in wanted(steps, _keys(steps, stage)):
            job = as_job(step, fingerprint, run.root)
            if job.finished and fingerprint not in done:
                done[fingerprint] = _Done(run.root.name, step, job)
    return done


def _keys(steps: Sequence[Step], stage: str | None) -> list[str]:
    """Return the steps to do: without a stage all, else its trainings, which alone have scratch."""
    return [step.key for step in steps if stage is None or (step.stage == stage and step.scratch)]


def _taken(step: Step, other: _Done) -> Step:
    """Return a step that takes the files of the same one in another folder."""
    return replace(
        step,
        needs=(*step.needs, f"{other.run}/{other.step.key}"),
        settings={"files": {"taken from": other.run}},
        work=partial(_take, other.step.outputs, step.outputs),
        scratch=None,
    )


def _take(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    for source, output in zip(sources, outputs, strict=True):
        if source.is_dir():
            with atomic_folder(output) as folder:
                shutil.copytree(source, folder, copy_function=_link, dirs_exist_ok=True)
        else:
            with atomic_file(output) as file:
                shutil.copyfile(source, file)


def _link(source: str, target: str) -> None:
    """Give a file a second name, so that a model takes room once; copy it where that cannot be."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs with every one after those it needs, and else as they are."""
    waiting, found = list(jobs), dict[str, Job]()
    while waiting:
        ready = next(job for job in waiting if all(need in found for need in job.needs))
        found[ready.key] = ready
        waiting.remove(ready)
    return list(found.values())
