"""The processes that a launcher has started: a run is the work of one."""

import os

from loramix.errors import StageError

# The variables in which a launcher tells each process how many there are and which one it is. A
# Slurm job's own number of tasks is not among them: a batch script, which is one process, has it
# too.
LAUNCHERS = {
    "torchrun or accelerate launch": ("WORLD_SIZE", "RANK"),
    "mpirun (Open MPI)": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpirun (MPICH or Intel MPI)": ("PMI_SIZE", "PMI_RANK"),
    "srun (Slurm)": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
}


def refuse_several_processes() -> None:
    """Raise StageError in every process of several that a launcher has started.

    All of them would write to one folder, and damage each other's files.
    """
    for launcher, (size, rank) in LAUNCHERS.items():
        processes = os.environ.get(size, "")
        if processes.isdecimal() and int(processes) > 1:
            raise StageError(
                f"this is rank {os.environ.get(rank, '?')} of {processes} processes, as started "
                f"by {launcher} ({size}={processes}); all would write to the same folder, and a "
                "run supports one process only; start it once: loramix run … or loramix compare …, "
                f"without the launcher (where {size} is left over from elsewhere: unset {size})"
            )
