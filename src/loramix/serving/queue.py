"""The jobs that wait for a place: who is next, and who reads its prompt in the same pass."""

from collections.abc import Sequence

from loramix.serving.jobs import Job, Limits

PATIENCE = 4  # how often shorter prompts may go first before it is a long one's turn


class Waiting:
    """Jobs in the order of arrival; short prompts go first, but not for ever.

    same_length: whether only prompts of the same length can be read in one pass.
    """

    def __init__(self, limits: Limits, *, same_length: bool = False) -> None:
        self._limits, self._same_length = limits, same_length
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        """Add jobs at the end."""
        self._jobs += jobs

    def drain(self) -> list[Job]:
        """Take out all jobs."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def take_over(self, now: float) -> list[Job]:
        """Take out those for whom nobody waits, and those whose time is over."""
        over = [job for job in self._jobs if self._is_over(job, now)]
        if over:
            self._jobs = [job for job in self._jobs if not self._is_over(job, now)]
        return over

    def next(self, places: int) -> list[Job]:
        """Take out the jobs whose prompts are read in the next pass, `places` at most.

        The shortest prompt is read first, with others as long as the pass stays within its limit
        and a row is at most half padding; a job that was passed over often goes before all others.
        """
        if places < 1 or not self._jobs:
            return []
        ordered = sorted(self._jobs, key=lambda job: len(job.ids))  # equal ones by arrival
        overdue = [job for job in self._jobs if job.passed_over >= PATIENCE]
        first = overdue[0] if overdue else ordered[0]
        chosen = [first]
        for job in ordered:
            if len(chosen) == places:
                break
            if job is not first and self._fits([*chosen, job]):
                chosen.append(job)
        taken = set(map(id, chosen))
        arrivals = [index for index, job in enumerate(self._jobs) if id(job) in taken]
        for job in self._jobs[: arrivals[-1]]:
            job.passed_over += id(job) not in taken
        self._jobs = [job for job in self._jobs if id(job) not in taken]
        return chosen

    def _fits(self, jobs: Sequence[Job]) -> bool:
        lengths = [len(job.ids) for job in jobs]
        if self._same_length:
            return min(lengths) == max(lengths)
        padded = max(lengths) * len(lengths)
        return padded <= self._limits.prefill_tokens and max(lengths) <= 2 * min(lengths) + 32

    def _is_over(self, job: Job, now: float) -> bool:
        return job.cancelled or now - job.arrived > self._limits.seconds
