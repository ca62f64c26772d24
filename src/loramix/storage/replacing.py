"""What is written beside a path takes its place at once, and what killed processes left is swept.

Beside `models` lies, while it is written, the folder `.models.tmp-1a2b3c4d`:

  new     what will stand there; after an exchange, what stood there before
  old-0   what stood there before, where the system cannot exchange two names at once

Its writer holds a lock on this folder, which ends with the process: who gets the lock of another
one's folder knows that its writer is dead.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from loramix.errors import OutputError

if sys.platform != "win32":
    import fcntl

_LONGEST = 200  # bytes of a name that a temporary one repeats; systems end at 255
_TRIES = 20  # of a move that another process comes in between of
_AT_CWD, _EXCHANGE = -100, 2  # of Linux's renameat2
_SWAP = 2  # of macOS's renamex_np
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_MOVED_MEANWHILE = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, removed at the end; rests of killed writers are swept
    first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    restore(path)
    for rest in _rests(path):
        _sweep(rest)
    folder, lock = _claimed(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def put(new: Path, path: Path) -> None:
    """Move a folder from its scratch folder to `path`, exchanging it with what stands there."""
    for attempt in range(_TRIES):
        try:
            _put(new, path, new.parent / f"old-{attempt}")
            return
        except OSError as error:
            if error.errno not in _MOVED_MEANWHILE or attempt == _TRIES - 1:
                raise


def restore(path: Path) -> None:
    """Put back what a killed writer has put aside, if nothing stands at `path`."""
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    put_aside = [old for rest in _rests(path) for old in rest.glob("old-*")]
    for old in sorted(put_aside, key=lambda each: each.stat().st_mtime_ns, reverse=True):
        with suppress(OSError):  # another process was faster
            old.rename(path)
            return


def target(path: Path) -> Path:
    """Return the path that a link leads to, or the path itself; OutputError for a circle."""
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} holds a NUL character, which no path can; rename it")
    followed = Path(os.path.realpath(path))
    if followed.is_symlink():
        raise OutputError(f"{path} is a link that leads to itself; remove it")
    return followed


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; return False, with nothing done, where the system cannot."""
    function = _exchanger()
    if function is None:
        return False
    if function(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _put(new: Path, path: Path, aside: Path) -> None:
    if not os.path.lexists(path):
        new.rename(path)
    elif not exchange(new, path):
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            with suppress(OSError):  # a reader has put it back already
                aside.rename(path)
            raise


@cache
def _exchanger() -> Callable[[bytes, bytes], int] | None:
    """Return the system's function that exchanges two names, if it has one."""
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    linux, macos = (getattr(library, name, None) for name in ("renameat2", "renamex_np"))

    def call(one: bytes, other: bytes) -> int:
        if linux is not None:
            return int(linux(_AT_CWD, one, _AT_CWD, other, _EXCHANGE))
        assert macos is not None
        return int(macos(one, other, _SWAP))

    return None if linux is None and macos is None else call


def _claimed(path: Path) -> tuple[Path, int]:
    """Return a new scratch folder and the descriptor that holds its lock."""
    while True:
        folder = path.parent / f"{_prefix(path)}{secrets.token_hex(4)}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        _lock(lock, wait=True)
        # who sweeps may have taken the lock first, and with it the folder
        if os.fstat(lock).st_nlink and folder.is_dir():
            return folder, lock
        os.close(lock)


def _sweep(rest: Path) -> None:
    """Remove the scratch folder of a dead writer; that of a living one stays."""
    try:
        lock = os.open(rest, os.O_RDONLY)
    except OSError:
        return  # gone, or not ours to touch
    try:
        if _lock(lock, wait=False):
            shutil.rmtree(rest, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Return whether the lock of an open folder was had; never where the system has none."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _rests(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(path)) + "[0-9a-f]{8}")
    try:
        return [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]
    except OSError:
        return []  # a folder that may be entered and not listed


def _prefix(path: Path) -> str:
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = sha256(os.fsencode(name)).hexdigest()
    return f".{name}.tmp-"
