"""Runs on Ray: what one process leaves, byte for byte, whoever is killed on the way."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # Ray and its workers need seconds to start
SECONDS = 600  # that nothing here takes, whatever else the machine does
TINY = ("run", "tiny", "--out", "run")
ON_RAY = (*TINY, "--cluster")
# As many threads as a worker has; and workers which, other than Ray's own, do not give way to
# whatever else the machine does.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
# Reports show no times; a marker of a step that is under way has another content.
COMPARED = ("*.csv", "*.safetensors", "*.html", "*.yaml", "*.parquet", ".stages/*.json")


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "loramix", *arguments],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )


def ended(folder: Path, *arguments: str) -> str:
    """Run a command in a folder and return its messages; it must succeed."""
    process = started(folder, *arguments)
    status = process.wait(SECONDS)
    told = (folder / "errors.txt").read_text()
    assert status == 0, told
    return told


def worker_of(step: str, folder: Path, process: subprocess.Popen[str]) -> int:
    """Wait until a worker is at work on a step; return its process."""
    for _ in range(SECONDS * 20):
        told = (folder / "errors.txt").read_text()
        found = re.search(rf"{step}: starts on .*, process (\d+)\n", told)
        place, _, key = f"run/{step}".rpartition("/")
        if found and (folder / place / ".stages" / f"{key}.json").is_file():
            return int(found[1])
        assert process.poll() is None, told
        time.sleep(0.05)
    raise AssertionError(told)


def content(folder: Path) -> dict[str, bytes]:
    root = folder / "run"
    files = [path for pattern in COMPARED for path in root.rglob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of the recipe `tiny`, done by one process."""
    folder = tmp_path_factory.mktemp("in order")
    ended(folder, *TINY)
    return content(folder)


@pytest.fixture
def same(in_order: dict[str, bytes]) -> Iterator[object]:
    """Return a function that asserts that a folder holds what one process left."""

    def check(folder: Path) -> None:
        found = content(folder)
        assert found.keys() == in_order.keys()
        assert len([name for name in found if name.endswith(".csv")]) > 30
        assert [name for name in found if found[name] != in_order[name]] == []

    return check


def test_a_run_on_ray_is_that_of_one_process(same, tmp_path: Path) -> None:
    told = ended(tmp_path, *ON_RAY)
    same(tmp_path)
    steps = re.findall(r"^(\d+) of 14 steps: ([\w-]+) done in \d+ s on .+$", told, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 15))
    assert "\x1b" not in told  # no colours where there is no terminal
    again = ended(tmp_path, *ON_RAY)[len(told) :]
    assert again.count("already done") == 14
    assert "starts on" not in again


def test_a_worker_that_dies_is_replaced(same, tmp_path: Path) -> None:
    process = started(tmp_path, *ON_RAY)
    os.kill(worker_of("gate", tmp_path, process), signal.SIGKILL)
    assert process.wait(SECONDS) == 0
    told = (tmp_path / "errors.txt").read_text()
    assert "gate: going on where it was interrupted" in told
    same(tmp_path)
    assert ended(tmp_path, *ON_RAY)[len(told) :].count("already done") == 14
    same(tmp_path)


def test_the_same_command_goes_on_where_a_killed_one_was(same, tmp_path: Path) -> None:
    process = started(tmp_path, *ON_RAY)
    worker_of("lora-title", tmp_path, process)
    process.kill()
    process.wait(SECONDS)
    ended(tmp_path, *ON_RAY)
    same(tmp_path)


def test_a_sweep_on_ray_is_that_of_one_process_whoever_is_killed(tmp_path: Path) -> None:
    sweep = ("sweep", "tiny", "gate.hidden=4,8", "--stage", "gate", "--out", "run")
    ended(tmp_path / "in order", *sweep)
    process = started(tmp_path / "on Ray", *sweep, "--cluster")
    os.kill(worker_of("gate.hidden-8/gate", tmp_path / "on Ray", process), signal.SIGKILL)
    process.kill()
    process.wait(SECONDS)
    ended(tmp_path / "on Ray", *sweep, "--cluster")
    one, other = content(tmp_path / "in order"), content(tmp_path / "on Ray")
    assert one.keys() == other.keys()
    assert {"sweep.csv", "gate.hidden-8/cgm/models/gate.safetensors"} < one.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("command", [TINY, ON_RAY], ids=["in order", "on Ray"])
def test_an_error_of_a_step_is_one_message(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run/data").mkdir(parents=True)
    (tmp_path / "run/data/tokens").touch()  # where training writes into a folder
    process = started(tmp_path, *command, "--stage", "lora")
    assert process.wait(SECONDS) == 1
    told = (tmp_path / "errors.txt").read_text().splitlines()
    assert told[-1].startswith("error: ")
    assert "tokens" in told[-1]
    assert not any("Traceback" in line for line in told)


def test_what_no_machine_has_is_refused(tmp_path: Path) -> None:
    process = started(tmp_path, *ON_RAY, "--step-resources", "lora=4096cpu")
    assert process.wait(SECONDS) == 1
    told = (tmp_path / "errors.txt").read_text().splitlines()
    assert told[-1].startswith("error: step lora-haiku takes 4096 CPU")
    assert not (tmp_path / "run/data").exists()
