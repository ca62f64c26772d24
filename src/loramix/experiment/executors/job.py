"""A job: one step as an executor sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Job:
    """One step of a run.

    needs: the keys of the jobs that must be done before it.
    work: does the step, unless it is finished.
    finished: whether it was before any job began; one that it needs may still redo it.
    marker: the file that says how far it has come.
    """

    key: str
    stage: str
    needs: tuple[str, ...]
    work: Callable[[], None]
    finished: bool
    marker: Path


# Does all jobs of a run folder, which come in an order in which they can be done.
Executor: TypeAlias = Callable[[Sequence[Job], Path], None]


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that are not finished, or that need one which is not."""
    found: dict[str, Job] = {}
    for job in jobs:
        if not job.finished or any(key in found for key in job.needs):
            found[job.key] = job
    return list(found.values())
