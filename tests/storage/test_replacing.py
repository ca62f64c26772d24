"""Files and folders are replaced at once, what they replace is never lost, and rests are swept."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from loramix.errors import BusyError, OutputError
from loramix.storage import replacing
from loramix.storage.files import atomic_file, atomic_folder, check_replaceable, write_text
from loramix.storage.hub import find
from loramix.storage.locks import locked, writing

HOLDER = """
import sys, time
from pathlib import Path
from loramix.storage.files import atomic_folder
from loramix.storage.locks import writing

with writing(Path(sys.argv[1])), atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders as systems with, and without, an exchange of names do."""
    if request.param == "two renames":
        monkeypatch.setattr(replacing, "exchange", lambda one, other: False)
    return str(request.param)


@pytest.fixture
def holder(tmp_path: Path) -> Callable[[Path], subprocess.Popen[str]]:
    """Return a function that starts a process that holds the lock of a folder, and half a copy."""

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def fill(path: Path, content: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "file").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_and_nothing_stays_beside_it(tmp_path: Path, way: str) -> None:
    for content in ("one", "two", "three"):
        fill(tmp_path / "saved", content)
        assert (tmp_path / "saved" / "file").read_text() == content
        assert names(tmp_path) == ["saved"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "saved", "one")
    with suppress(KeyError), atomic_folder(tmp_path / "saved") as folder:
        (folder / "file").write_text("two")
        raise KeyError
    with suppress(KeyError), atomic_file(tmp_path / "saved" / "file") as file:
        file.write_text("two")
        raise KeyError
    assert (tmp_path / "saved" / "file").read_text() == "one"
    assert names(tmp_path) == ["saved"]
    assert names(tmp_path / "saved") == ["file"]


@pytest.mark.parametrize("reader", ["find", "check_replaceable", "atomic_folder"])
def test_what_a_killed_writer_put_aside_comes_back(tmp_path: Path, reader: str) -> None:
    aside = tmp_path / ".saved.tmp-0123abcd" / "old-0"
    aside.mkdir(parents=True)
    (aside / "file").write_text("one")
    if reader == "find":
        assert find(tmp_path / "saved").folder == tmp_path / "saved"
    elif reader == "check_replaceable":
        check_replaceable(tmp_path / "saved", "file")
    else:
        with pytest.raises(KeyError), atomic_folder(tmp_path / "saved"):
            raise KeyError
    assert (tmp_path / "saved" / "file").read_text() == "one"


def test_what_was_put_aside_does_not_replace_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "saved", "two")
    aside = tmp_path / ".saved.tmp-0123abcd" / "old-0"
    aside.mkdir(parents=True)
    find(tmp_path / "saved")
    assert (tmp_path / "saved" / "file").read_text() == "two"
    fill(tmp_path / "saved", "three")
    assert names(tmp_path) == ["saved"]


def test_rests_of_dead_writers_are_swept_and_those_of_living_ones_stay(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]
) -> None:
    process = holder(tmp_path / "saved")
    fill(tmp_path / "saved", "one")  # below the lock, as writers of other kinds of folders are
    fill(tmp_path / "saved.other", "one")
    (rest,) = tmp_path.glob(".saved.tmp-*")
    assert (rest / "new" / "half").is_file()
    said = rf"process {process.pid} on .+ since 20.+--wait"
    with pytest.raises(BusyError, match=said), writing(tmp_path / "saved"):
        pass
    process.kill()
    process.communicate()
    with writing(tmp_path / "saved"):
        fill(tmp_path / "saved", "two")
    assert names(tmp_path) == ["saved", "saved.other"]


def test_a_second_process_waits_if_it_is_asked_to(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]
) -> None:
    process = holder(tmp_path / "saved")
    threading.Timer(0.5, process.kill).start()
    with writing(tmp_path / "saved", wait=True):
        assert process.wait() != 0
    process.communicate()


def test_a_thread_takes_its_own_lock_again_and_another_thread_does_not(tmp_path: Path) -> None:
    file, refused = tmp_path / "run" / ".lock", []

    def other() -> None:
        try:
            with locked(tmp_path / "run", file):
                pass
        except BusyError as error:
            refused.append(str(error))

    with locked(tmp_path / "run", file):
        with locked(tmp_path / "run", file):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    other()
    assert len(refused) == 1
    assert names(tmp_path / "run") == []


# --- what stands at the path


def test_links_stay_and_lead_to_what_is_written(tmp_path: Path, way: str) -> None:
    for name in ("there", "later"):
        (tmp_path / f"{name}-link").symlink_to(tmp_path / "disk" / name)
        (tmp_path / f"{name}-text").symlink_to(Path("disk") / f"{name}.txt")
    fill(tmp_path / "disk" / "there", "one")
    write_text(tmp_path / "disk" / "there.txt", "one")
    for name in ("there", "later"):
        fill(tmp_path / f"{name}-link", "two")
        write_text(tmp_path / f"{name}-text", "two")
        assert (tmp_path / f"{name}-link").is_symlink()
        assert (tmp_path / f"{name}-text").is_symlink()
        assert (tmp_path / "disk" / name / "file").read_text() == "two"
        assert (tmp_path / "disk" / f"{name}.txt").read_text() == "two"


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="link that leads to itself"):
        write_text(tmp_path / "a", "x")
    with pytest.raises(OutputError, match="link that leads to itself"):
        fill(tmp_path / "b", "x")


def test_a_pipe_gets_what_is_written_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    thread.start()
    write_text(tmp_path / "pipe", "x" * 100)
    thread.join()
    assert read == ["x" * 100]
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OutputError, match="no folder"):
        fill(tmp_path / "pipe", "x")


def test_a_full_device_is_an_error_and_stays() -> None:
    device = Path("/dev/full")
    if not device.is_char_device():
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_text(device, "x")
    assert device.is_char_device()
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


def test_an_open_file_gets_what_is_written_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with (tmp_path / "log").open("a") as opened:
        write_text(Path(f"/proc/self/fd/{opened.fileno()}"), "said")
        before = os.fstat(opened.fileno()).st_ino
    assert (tmp_path / "log").read_text() == "said"
    assert (tmp_path / "log").stat().st_ino == before


def test_a_folder_is_no_file_and_a_file_is_no_folder(tmp_path: Path) -> None:
    fill(tmp_path / "saved", "one")
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path / "saved", "x")
    with pytest.raises(OutputError, match="is no folder"):
        fill(tmp_path / "saved" / "file", "x")


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 120, "a b\n*[0-9]", ".hidden"])
def test_odd_and_long_names_are_written(tmp_path: Path, name: str, way: str) -> None:
    for content in ("one", "two"):
        fill(tmp_path / "folders" / name, content)
        write_text(tmp_path / "files" / name, content)
    assert (tmp_path / "folders" / name / "file").read_text() == "two"
    assert (tmp_path / "files" / name).read_text() == "two"
    assert names(tmp_path / "folders") == names(tmp_path / "files") == [name]
