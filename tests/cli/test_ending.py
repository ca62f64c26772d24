"""Every command ends in words: one line for what the system refuses, and a status that tells."""

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from safetensors import SafetensorError

from loramix.cli.ending import ended
from loramix.errors import BusyError, HubError

Call = Callable[..., subprocess.CompletedProcess[str]]


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/a.csv"),
            1,
            "error: results/a.csv: No space left on device; make room on the disk",
        ),
        (PermissionError(errno.EACCES, "", b"x"), 1, "error: x: Permission denied; you may not"),
        (OSError(errno.EROFS, "", Path("x")), 1, "x: Read-only file system; this place can only"),
        (OSError(errno.EDQUOT, ""), 1, "error: Disk quota exceeded; your quota is used up"),
        (OSError("odd\nsecond line"), 1, "error: odd\n"),
        (SafetensorError("I/O error: x (os error 28)"), 1, "No space left on device; make room"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), 1, "No space left on device"),
        (HubError("no folder"), 1, "error: no folder\n"),
        (BusyError("x is being written to by process 1"), 1, "error: x is being written to"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (click.UsageError("no such option"), 2, "Error: no such option"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error)) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == bool(said)
    assert captured.out == ""


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        ended(raising(RuntimeError("a bug")))


def test_statuses_of_the_command_line(call: Call) -> None:
    assert call("recipes").returncode == 0
    assert call("runn").returncode == 2
    assert call("run", "no-such-recipe").returncode == 1


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "~nobody-of-this-name/x"])
def test_places_that_cannot_be_are_refused_in_one_line(
    call: Call, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for command in (
        ["generate", name, "hi"],
        ["run", name],
        ["run", "tiny", "--out", name],
        ["export", name, "out", "--weight", "a=1"],
        ["mix", "out", "--base", "tiny-llama", "--expert", f"a={name}"],
    ):
        if name.startswith("~") and "--out" in command:
            continue  # an ordinary name
        done = call(*command)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_cannot_fit_on_the_disk_does_not_begin(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    done = call("run", "tiny", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "needs about" in done.stderr
    assert "finetune, gate, lora" in done.stderr
    assert "1 MB left; make room" in done.stderr
    assert not (tmp_path / "out" / "data").exists()
