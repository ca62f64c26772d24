"""Several processes: what cannot be started so is refused in each of them, before anything is
written; `test_together` starts some.
"""

from pathlib import Path

import pytest

from loramix.bases.loading import load_base
from loramix.comparison.compare import compare
from loramix.data.tokens.batches import Encoded
from loramix.errors import StageError
from loramix.experiment import processes as module
from loramix.experiment.processes import LAUNCHERS, Processes, join, lost_in_words
from loramix.experiment.reading import load_recipe
from loramix.experiment.runner import run
from loramix.experiment.sizes import refuse_uneven
from loramix.experiment.training.tokens import as_samples
from loramix.experiment.training.trainer import learn

# what torchrun tells the second of two processes
SECOND = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
RECIPE = load_recipe("tiny")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free the tests of a launcher that they may have been started by."""
    for names in (*LAUNCHERS.values(), SECOND):
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("work", [run, compare])
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("launcher", "size", "number"),
    [
        ("torchrun or accelerate launch", "WORLD_SIZE", "RANK"),
        ("mpirun (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("mpirun (MPICH or Intel MPI)", "PMI_SIZE", "PMI_RANK"),
        ("srun (Slurm)", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ],
)
def test_every_rank_is_refused_and_writes_nothing(
    work, rank, launcher, size, number, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv(number, rank)
    with pytest.raises(StageError) as caught:
        work(RECIPE, tmp_path / "run")
    for expected in (f"rank {rank} of 2 processes", launcher, "start it once", f"unset {size}"):
        assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_in_one_clean_message(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    for command in ("run", "compare"):
        done = call(command, "tiny", "--out", str(tmp_path / "run"))
        assert done.returncode == 1
        assert done.stderr.startswith("error: this is rank 3 of 8 processes")
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_is_refused_even_if_processes_can_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        StageError, match=r"rank 1 of 2 .*; a comparison is the work of one process"
    ):
        compare(RECIPE, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_to_spread_a_training_are_refused_by_name(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECOND, f"ACCELERATE_USE_{way}": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StageError, match=rf"ACCELERATE_USE_{way}.*base.device_map=auto"):
        join()


def test_batches_that_cannot_be_shared_evenly_are_refused() -> None:
    refuse_uneven(RECIPE, {"finetune", "lora", "gate"}, 4)
    refuse_uneven(RECIPE, {"prepare"}, 3)
    with pytest.raises(StageError) as caught:
        refuse_uneven(RECIPE, {"lora", "gate"}, 3)
    assert "lora.batch_size is 8, gate.batch_size is 8, and 3 processes" in str(caught.value)
    assert "lora.batch_size=9 gate.batch_size=9" in str(caught.value)


@pytest.mark.parametrize("said", ["gloo: Connection reset by peer", "x Connection closed by peer"])
def test_a_lost_process_is_told_in_words_and_other_errors_stay(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=said), lost_in_words():
        raise RuntimeError(said)  # of one process
    monkeypatch.setattr(module, "_processes", Processes(1, 2, object()))
    with pytest.raises(StageError, match=r"rank 1 has lost another.*same command"), lost_in_words():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match=r"^shapes$"), lost_in_words():
        raise RuntimeError("shapes")


def test_a_training_that_nobody_has_joined_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    base, samples = load_base("tiny-llama"), as_samples([[Encoded([5], [6])]])
    with pytest.raises(StageError, match="this training is the work of one process"):
        learn(
            *(base.model, base.tokenizer, samples, samples, RECIPE.lora),
            **{"seed": 0, "dtype": "float32", "folder": tmp_path, "label": "adapter"},
        )


def test_one_process_does_all_items_in_order_itself() -> None:
    alone = Processes()
    assert alone.first
    assert alone.divided([3, 1, 2], lambda item: 10 * item) == [30, 10, 20]
    assert alone.once(lambda: "done") == "done"


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "1", "RANK": "0"},
        {**SECOND, "WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_NUM_TASKS": "2"},  # srun torchrun
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, which is one process
        {"WORLD_SIZE": ""},
    ],
    ids=str,
)
def test_one_process_runs(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done: list[str] = []
    monkeypatch.setattr("loramix.experiment.runner._do", lambda step, *rest: done.append(step.key))
    run(RECIPE, tmp_path / "run", stage="prepare")
    assert done == ["prepare"]
