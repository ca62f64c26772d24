"""Runs of two and three processes, against the same run of one."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loramix.experiment.processes import LAUNCHERS
from loramix.storage.files import read_csv

pytestmark = pytest.mark.slow

CLOSE = 1e-4
# Gates that move far and keep it, by every loss that they have; batches that two and three share.
SETTINGS = (
    "samples=40",
    *("finetune.epochs=1", "finetune.batch_size=6"),
    *("lora.batch_size=6", "lora.accumulation=2", "lora.learning_rate=3e-3"),
    *("gate.batch_size=6", "gate.accumulation=2", "gate.learning_rate=1e-2", "gate.init=zero"),
    *("gate.keep_start=false", "gate.entropy=0.1", "gate.balance=0.3", "gate.supervised=0.2"),
    *("generation.batch_size=2",),
)
ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
THREE = (*TWO[:-1], "3")
MEETING = {"MASTER_ADDR": "127.0.0.1"}
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
)


def command(launcher: Sequence[str], folder: Path, *settings: str) -> list[str]:
    return [*launcher, "-m", "loramix", *arguments(folder, *settings)]


def dying(
    launcher: Sequence[str], victim: int, amid: str, folder: Path, *settings: str
) -> list[str]:
    """Return the command of a run of which a rank dies amid the training of a stage."""
    driver = str(Path(__file__).with_name("dying_rank.py"))
    return [*launcher, driver, str(victim), f"/{amid}/", *arguments(folder, *settings)]


def arguments(folder: Path, *settings: str) -> list[str]:
    return ["run", "tiny", *SETTINGS, *settings, "--out", str(folder)]


def environment() -> dict[str, str]:
    """Return this process's variables without those of a launcher of its own."""
    foreign = {name for names in LAUNCHERS.values() for name in names}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "OMP_NUM_THREADS": "1"}


def finished(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )


def run(launcher: Sequence[str], folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    done = finished(command(launcher, folder, *settings))
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(ONE, folder)
    return folder


def assert_same(folder: Path, expected: Path) -> None:
    """Assert that two runs have the same files, texts, and numbers up to `CLOSE`."""
    names = [str(file.relative_to(expected)) for file in sorted(expected.rglob("*"))]
    assert names == [str(file.relative_to(folder)) for file in sorted(folder.rglob("*"))]
    for name in names:
        if name.endswith(".csv"):
            assert_same_table(folder / name, expected / name)
        if name.endswith(".safetensors"):
            found, wanted = load_file(folder / name), load_file(expected / name)
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert (found[key].float() - value.float()).abs().max() < CLOSE, (name, key)


def assert_same_table(file: Path, expected: Path) -> None:
    found, wanted = read_csv(file), read_csv(expected)
    assert len(found) == len(wanted)
    for row, wanted_row in zip(found, wanted, strict=True):
        assert row.keys() == wanted_row.keys()
        for column, cell in wanted_row.items():
            if row[column] != cell:  # rounding alone
                assert float(row[column]) == pytest.approx(float(cell), abs=CLOSE), file


@pytest.mark.parametrize("launcher", [TWO, THREE], ids=["2", "3"])
def test_several_processes_leave_what_one_leaves(
    launcher: Sequence[str], alone: Path, tmp_path: Path
) -> None:
    done = run(launcher, tmp_path / "run")
    assert_same(tmp_path / "run", alone)
    assert done.stderr.count("evaluate: done in") == 1  # the first one speaks for all
    assert done.stdout.count(str(tmp_path / "run")) == 1


def test_accelerate_launches_them_too(alone: Path, tmp_path: Path) -> None:
    run(ACCELERATE, tmp_path / "run", "--stage", "lora")
    assert_same(tmp_path / "run" / "lora", alone / "lora")


@pytest.mark.parametrize(("victim", "launcher"), [(0, TWO), (1, ONE)], ids=["0", "1, then alone"])
def test_after_a_rank_was_killed_the_others_end_and_a_run_goes_on(
    victim: int, launcher: Sequence[str], alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # one epoch of the gates is done, and another one is to come
    killed = finished(dying(TWO, victim, "cgm", folder))
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    assert (folder / "cgm" / "checkpoints").exists()
    done = run(launcher, folder)
    assert "gate: going on where it was interrupted" in done.stderr
    assert_same(folder, alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_without_a_launcher_that_watches_the_other_one_says_that_one_has_gone(
    victim: int, tmp_path: Path
) -> None:
    """As on two machines: what started one does not know of the other."""
    port = free_port()
    ranks = []
    for rank in ("0", "1"):
        given = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            **MEETING,
            "MASTER_PORT": port,
        }
        ranks.append(
            subprocess.Popen(
                dying(ONE, victim, "lora", tmp_path / "run", "--stage", "lora"),
                env={**environment(), **given},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    other = ranks[1 - victim]
    try:
        _, said = other.communicate(timeout=400)
    finally:
        for each in ranks:
            each.kill()
            each.communicate()
    assert ranks[victim].returncode == -signal.SIGKILL
    assert other.returncode == 1
    assert f"error: rank {1 - victim} has lost another process of this run" in said
    assert "Traceback" not in said


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_an_error_of_the_first_rank_ends_all_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("base: 3")
    done = finished(command(TWO, folder))
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "recipe.yaml is damaged" in done.stderr
    assert "rank 1 stops because rank 0 has" in done.stderr
