"""The executor of one process: step after step."""

from collections.abc import Sequence
from pathlib import Path

from loramix.experiment.executors.job import Job


def in_order(jobs: Sequence[Job], root: Path) -> None:
    """Do the jobs in their order."""
    for job in jobs:
        job.work()
