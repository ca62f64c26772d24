"""Locks on folders that one process at a time may write to.

The system ends a lock with the process that holds it, so what a killed process leaves keeps nobody
out. Beside a lock lies who holds it, for the message to the second comer.
"""

import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from loramix.errors import BusyError

log = logging.getLogger("loramix")
_FOREVER = -1.0  # as filelock has it


@contextmanager
def locked(path: Path, file: Path, *, wait: bool = False, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock `file` of the folder `path`; a thread that holds it may take it again.

    wait: until it is free; else for so many seconds.
    Raises BusyError if another process, or another thread, holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(os.path.realpath(file), is_singleton=True)
    with warnings.catch_warnings(
        action="ignore"
    ):  # of systems where a lock is the file's existence
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            said = f"{path} is being written to by {_holder(file)}"
            if not wait:
                raise BusyError(
                    f"{said}; wait for it (on the command line: --wait), or choose another folder"
                ) from None
            log.info("%s; waiting for it", said)
            lock.acquire(timeout=_FOREVER)
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            _write_holder(file)
        yield
    finally:
        if outermost:
            for mark in (_note(file), file):  # who waits notices that the file has gone
                mark.unlink(missing_ok=True)
        lock.release()


@contextmanager
def writing(path: Path, *, wait: bool = False, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder that is replaced as a whole: it lies beside the folder."""
    place = Path(os.path.realpath(path))
    with locked(path, place.parent / f".{place.name[:100]}.lock", wait=wait, seconds=seconds):
        yield


def _write_holder(file: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # the lock counts, not what is said of it
        _note(file).write_text(json.dumps(holder), encoding="utf-8")


def _holder(file: Path) -> str:
    """Return who holds a lock, in words."""
    try:
        holder = json.loads(_note(file).read_text(encoding="utf-8"))
        who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return who


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")
