"""How a command ends: one message and an exit status, 1 for errors, 2 for usage, 130 for Ctrl-C."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from loramix.errors import LoramixError

INTERRUPTED = 130  # as shells count: 128 and the signal's number
_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or write elsewhere",
    errno.EDQUOT: "your quota is used up: make room, or write elsewhere",
    errno.EACCES: "you may not: choose another place, or change its rights",
    errno.EPERM: "you may not: choose another place, or change its rights",
    errno.EROFS: "this place can only be read: write elsewhere",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOENT: "check the path",
    errno.ELOOP: "links lead in a circle: remove one",
    errno.EMFILE: "too many files are open: raise the limit with ulimit -n",
    errno.EIO: "the disk or its connection fails: check it, and write elsewhere",
    errno.EBUSY: "another program uses it: end that, or choose another place",
}
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # of errors in Rust, and told again


def ended(command: Callable[[], object]) -> int:
    """Run a command and return its exit status; an error is one message on standard error."""
    try:
        status = command()
        sys.stdout.flush()  # here, where a full disk can still be told
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    except LoramixError as error:
        say(f"error: {error}")
    except BrokenPipeError:
        pass  # who reads has seen enough
    except Exception as error:
        told = system_error(error)
        if told is None:
            raise
        say(f"error: {told}")
    _give_up_output()
    return 1


def system_error(error: BaseException) -> str | None:
    """Return an error of the system in one line, with path, reason and remedy; None for others."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = _NUMBER.search(str(error))
        if found is not None:
            number = int(found[1] or found[2])
        elif "PytorchStreamWriter" in str(error):  # torch does not say what failed
            number = errno.ENOSPC
    if number is None:
        return _first_line(error) if isinstance(error, OSError) else None
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    where = f"{os.fsdecode(path)}: " if isinstance(path, str | bytes | os.PathLike) else ""
    remedy = _REMEDIES.get(number)
    return f"{where}{os.strerror(number)}{f'; {remedy}' if remedy else ''}"


def say(text: str) -> None:
    """Write a message to standard error, if anything can be written there."""
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


def quiet_logging() -> None:
    """Let messages that cannot be written, as on a full disk, be lost without more messages."""
    logging.raiseExceptions = False


def _give_up_output() -> None:
    """Let nothing be written at the end of the process, where it would be a second error."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
