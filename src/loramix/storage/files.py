"""Files and folders that appear whole or not at all: temporary name, fsync, exchange."""

import csv
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE, S_ISREG
from tempfile import TemporaryDirectory
from threading import RLock
from urllib.parse import quote

from loramix.errors import DataError, OutputError
from loramix.storage.replacing import put, restore, scratch, target

_LONGEST_FIELD = 2**26  # characters: some hundred books
_LONGEST_NAME = 200  # of a folder; systems end at 255, and names are made longer
_AROUND = 20  # characters on each side of what an error shows
_limit = RLock()  # the csv module's limit is one for the whole process


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, on any error nothing
    changes.

    A link stays, and leads to the new file. What is no file, such as a device or a pipe, is never
    replaced: it gets what was written.
    Raises OutputError for a folder, and DataError for a text with half of a character, which no
    file in UTF-8 holds.
    """
    place = target(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and a file is to be written there; name a file")
    try:
        if _takes_bytes(path):
            with TemporaryDirectory() as folder:
                yield Path(folder) / f"new{path.suffix}"
                _send(Path(folder) / f"new{path.suffix}", path)
            return
        with scratch(place) as folder:
            temporary = folder / f"new{path.suffix}"
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # as the umask has it; who writes may set another one
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(place)
    except UnicodeEncodeError as error:
        raise DataError(_half_character(path, error)) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it replaces `path`, on any error nothing
    changes.

    A link stays, and leads to the new folder. Raises OutputError if `path` is no folder.
    """
    place = target(path)
    if place.exists() and not place.is_dir():
        raise OutputError(f"{path} is no folder, so it is not replaced; name another place")
    with scratch(place) as folder:
        temporary = folder / "new"
        temporary.mkdir()
        mode = S_IMODE(temporary.stat().st_mode)  # as the umask and the folder around it have it
        yield temporary
        for inner in temporary.rglob("*"):
            # safetensors, for one, writes files that nobody else may read
            inner.chmod(mode if inner.is_dir() else mode & 0o666)
            _sync(inner)
        put(temporary, place)
        _sync(place.parent)


def path_part(name: str) -> str:
    """Return the name of a file or folder for an expert's name, which may hold what a path must
    not; different ones for different names.
    """
    quoted = quote(name, safe=" ", errors="surrogatepass").replace("..", "%2E%2E")
    if len(quoted) > _LONGEST_NAME:
        return f"{quoted[:_LONGEST_NAME]}~{sha256(quoted)[:16]}"
    return "%2E" if quoted == "." else quoted


def check_replaceable(path: Path, marker: str) -> None:
    """Raise OutputError if `path` is no folder, or holds anything without the file that marks what
    replaces it.
    """
    restore(target(path))
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not (path / marker).is_file():
        raise OutputError(
            f"{path} exists and holds no {marker}, so it is not replaced; choose another folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")  # line ends as they are


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; None is an empty cell, and a negative zero is zero."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(
            [0.0 if cell == 0 and isinstance(cell, float) else cell for cell in row] for row in rows
        )


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column name."""
    with path.open(newline="", encoding="utf-8") as file, long_fields():
        return list(csv.DictReader(file))


@contextmanager
def long_fields() -> Iterator[None]:
    """Let the csv module read whole papers and books in one field; it ends at 131,072 characters
    otherwise.

    The limit is put back at the end: code beside ours may count on its own.
    """
    with _limit:  # or a thread would put the limit back while another one still reads
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def sha256(content: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, or of a text in UTF-8, in hexadecimal."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _half_character(path: Path, error: UnicodeEncodeError) -> str:
    found = error.object[error.start]
    around = error.object[max(0, error.start - _AROUND) : error.end + _AROUND]
    return (
        f"cannot write {path}: the text {around!r} holds U+{ord(found):04X}, one half of a "
        "character, as texts have that were cut within an emoji; replace it, with U+FFFD for "
        "instance (loramix.data.texts.whole_characters does)"
    )


def _takes_bytes(path: Path) -> bool:
    """Return whether `path` is a device, a pipe or an open file, which a file must not replace."""
    try:
        if not S_ISREG(path.stat().st_mode):
            return True
    except FileNotFoundError:
        return False
    # /dev/stdout leads to /proc/self/fd/1, and from there to what that is
    leads = [str(path.readlink())] if path.is_symlink() else []
    return any(each.startswith("/proc/") for each in [*leads, os.path.realpath(path.parent)])


def _send(file: Path, path: Path) -> None:
    with file.open("rb") as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
