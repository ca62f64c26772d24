"""The processes of a run: one alone, or those that torchrun or accelerate launch has started.

They train together, each on its part of every batch, and share the batches of questions among them.
All that is written is written by rank 0, while the others wait.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loramix.errors import StageError
from loramix.storage.locks import locked

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Item = TypeVar("Item")
Result = TypeVar("Result")
log = logging.getLogger("loramix")

# The variables in which a launcher tells each process how many there are and which one it is. A
# Slurm job's own number of tasks is not among them: a batch script, which is one process, has it
# too.
LAUNCHERS = {
    "torchrun or accelerate launch": ("WORLD_SIZE", "RANK"),
    "mpirun (Open MPI)": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpirun (MPICH or Intel MPI)": ("PMI_SIZE", "PMI_RANK"),
    "srun (Slurm)": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
}
# All that torchrun and accelerate launch give: processes can find each other by it.
_MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Other ways to spread a training, as accelerate launch says that they are on.
_REFUSED = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
_WAIT = timedelta(days=1)  # for rank 0, which may be fetching a base
# How gloo says that another process has gone.
_LOST = ("Connection closed by peer", "Connection reset", "Connection refused", "Broken pipe")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is.

    group: through which they tell each other Python objects; None: this one is alone.
    """

    rank: int = 0
    size: int = 1
    group: "ProcessGroup | None" = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def once(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do some work while the others wait; all return its result.

        An error of rank 0 is a StageError in the others, so that none waits for ever.
        """
        if self.group is None:
            return work()
        from torch.distributed import broadcast_object_list

        error: Exception | None = None
        told: list[tuple[Result | None, str | None]] = [(None, None)]
        if self.first:
            try:
                told = [(work(), None)]
            except Exception as caught:
                error, told = caught, [(None, str(caught) or type(caught).__name__)]
        broadcast_object_list(told, src=0, group=self.group)
        if error is not None:
            raise error
        result, said = told[0]
        if said is not None:
            raise StageError(f"rank {self.rank} stops because rank 0 has: {said.splitlines()[0]}")
        return result  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.once(lambda: None)

    def divided(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Result],
        *,
        shown: Callable[[Sequence[Item]], Iterator[Item]] = iter,
    ) -> list[Result]:
        """Return the results of all items in their order, each worked on by one of the processes.

        shown: yields the items of this process, as a progress bar does.
        """
        mine = [work(item) for item in shown(items[self.rank :: self.size])]
        if self.group is None:
            return mine
        from torch.distributed import all_gather_object

        parts: list[list[Result]] = [[] for _ in range(self.size)]
        all_gather_object(parts, mine, group=self.group)
        return [parts[index % self.size][index // self.size] for index in range(len(items))]

    @contextmanager
    def locked(self, root: Path, lock: Path, *, wait: bool) -> Iterator[None]:
        """Hold a lock in rank 0, for all."""
        with ExitStack() as stack:
            self.once(lambda: stack.enter_context(locked(root, lock, wait=wait)))
            yield


_processes = Processes()


def processes() -> Processes:
    """Return the processes of this run: this one alone, unless `join` has found others."""
    return _processes


def join() -> Processes:
    """Meet the other processes that torchrun or accelerate launch has started, and return all.

    Raises StageError for other launchers, and for other ways to spread a training.
    """
    global _processes
    if _processes.group is not None or not _launched(os.environ):
        return _processes
    import torch
    from accelerate import PartialState
    from torch import distributed

    cuda, here = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if cuda and here >= torch.cuda.device_count():
        raise StageError(
            f"rank {os.environ['RANK']} is process {here} of this machine, counted from 0, which "
            f"has {torch.cuda.device_count()} GPUs; start one process for each"
        )
    PartialState(cpu=not cuda, **({} if cuda else {"backend": "gloo"}))
    group = distributed.new_group(backend="gloo", timeout=_WAIT)
    _processes = Processes(distributed.get_rank(), distributed.get_world_size(), group)
    if not _processes.first:
        log.setLevel(logging.ERROR)  # the first one speaks for all
    return _processes


def refuse_several_processes(what: str) -> None:
    """Raise StageError in every process of several that a launcher has started.

    what: cannot be done by several, in words. All of them would write to one folder, and damage
    each other's files.
    """
    found = _several(os.environ)
    if found is not None:
        raise StageError(
            f"{_which(*found)}; {what} is the work of one process, as all would write to the same "
            f"folder; start it once, without the launcher (where {LAUNCHERS[found[0]][0]} is left "
            f"over from elsewhere: unset {LAUNCHERS[found[0]][0]})"
        )


@contextmanager
def lost_in_words() -> Iterator[None]:
    """Turn errors of the connection to another process into one line."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        said = [each for each in _LOST if each in str(error)]
        lost = isinstance(error, DistError) or bool(said)
        if processes().group is None or not lost or isinstance(error, StageError):
            raise
        raise StageError(
            f"rank {processes().rank} has lost another process of this run "
            f"({said[0] if said else str(error).splitlines()[0]}), which says why, unless it was "
            "killed; the same command goes on from the last checkpoint"
        ) from error


def _launched(environment: Mapping[str, str]) -> bool:
    """Return whether there are several processes that can find each other."""
    found = _several(environment)
    if found is None:
        return False
    launcher, _ = found
    size = LAUNCHERS[launcher][0]
    if missing := [name for name in _MEETING if not environment.get(name)]:
        raise StageError(
            f"{_which(*found)}, and {', '.join(missing)} is not set, so they cannot find each "
            "other; start them with torchrun --nproc-per-node N -m loramix run … or accelerate "
            f"launch --num_processes N -m loramix run …, or start it once: loramix run … (where "
            f"{size} is left over from elsewhere: unset {size})"
        )
    for way, name in _REFUSED.items():
        if environment.get(name, "false").lower() in ("true", "1"):
            raise StageError(
                f"{way} is on ({name}), and training is spread by data-parallel processes (DDP) "
                "alone: each holds the whole base; a base larger than one device is for one "
                "process with base.device_map=auto; turn it off with accelerate config, or start "
                "with torchrun"
            )
    return True


def _several(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the launcher that has started several processes, and how many; None if none has."""
    for launcher, (size, _) in LAUNCHERS.items():
        number = environment.get(size, "")
        if number.isdecimal() and int(number) > 1:
            return launcher, number
        if size == "WORLD_SIZE" and number and all(environment.get(each) for each in _MEETING):
            return None  # torchrun has started one; Slurm or MPI may have started torchrun
    return None


def _which(launcher: str, number: str) -> str:
    size, rank = LAUNCHERS[launcher]
    return (
        f"this is rank {os.environ.get(rank, '?')} of {number} processes, as started by "
        f"{launcher} ({size}={number})"
    )
