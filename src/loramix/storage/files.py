"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

import csv
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from threading import RLock
from urllib.parse import quote

from loramix.errors import DataError, OutputError

_LONGEST_FIELD = 2**31 - 1  # the most that the csv module takes on every system
_AROUND = 20  # characters on each side of what an error shows
_limit = RLock()  # the csv module's limit is one for the whole process


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, on any error nothing
    changes.

    Raises DataError for a text with half of a character, which no file in UTF-8 holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_hidden(path)}{path.suffix}"
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the umask has it; who writes may set another one
    try:
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
    except UnicodeEncodeError as error:
        raise DataError(_half_character(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it replaces `path`, on any error nothing
    changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / _hidden(path)
    temporary.mkdir()
    mode = S_IMODE(temporary.stat().st_mode)  # as the umask and the folder around it have it
    try:
        yield temporary
        for inner in temporary.rglob("*"):
            # safetensors, for one, writes files that nobody else may read
            inner.chmod(mode if inner.is_dir() else mode & 0o666)
            _sync(inner)
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def path_part(name: str) -> str:
    """Return the name of a file or folder for an expert's name, which may hold what a path must
    not; different ones for different names.
    """
    quoted = quote(name, safe=" ").replace("..", "%2E%2E")
    return "%2E" if quoted == "." else quoted


def check_replaceable(path: Path, marker: str) -> None:
    """Raise OutputError if `path` is a file, or holds anything without the file that marks what
    replaces it.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / marker).is_file()):
        raise OutputError(
            f"{path} exists and holds no {marker}, so it is not replaced; choose another folder"
        )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")  # line ends as they are


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; None is an empty cell."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


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


def _swap(new: Path, path: Path) -> None:
    """Put folder `new` at `path`, moving an older one out of the way first."""
    old = path.parent / f"{_hidden(path)}.old"
    old.mkdir()
    try:
        if path.exists():
            path.replace(old / "replaced")
        new.replace(path)
    finally:
        shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden(path: Path) -> str:
    """Return a name beside `path` that nobody else uses and that listings leave out."""
    return f".{path.name}.{secrets.token_hex(4)}"
