"""Text files in UTF-8; of other encodings, errors that say how to save them."""

import codecs
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path

REMEDY = "save it as UTF-8 (in spreadsheets 'CSV UTF-8', in editors 'Save as', encoding UTF-8)"
_LONGEST_LINE = 2**26  # characters: some hundred books
_LARGEST_SETTINGS = 50 * 10**6  # bytes
# UTF-32's little-endian mark begins with UTF-16's, so it stands first.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class EncodingError(ValueError):
    """A file that is no text in UTF-8; the message names the line and the remedy."""


def marked_encoding(path: Path) -> str | None:
    """Return UTF-16 or UTF-32 if the file's byte order mark says so."""
    with _binary(path) as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


@contextmanager
def text_lines(path: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a text file in UTF-8, with or without a byte order mark, plain or gzipped.

    Raises EncodingError while they are read if they are of another encoding or hold NUL characters.
    """
    if (marked := marked_encoding(path)) is not None:
        raise EncodingError(f"line 1 begins with the byte order mark of {marked}; {REMEDY}")
    with _binary(path) as file, TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            yield _without_nul(text)
        except UnicodeDecodeError as error:
            raise EncodingError(_first_problem(path)) from error


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises EncodingError for other encodings and for NUL characters.
    """
    marked = marked_encoding(path)
    if marked is None:
        with text_lines(path) as lines:
            return "".join(lines)
    try:
        return path.read_bytes().decode(marked)
    except UnicodeDecodeError as error:
        raise EncodingError(f"it is damaged {marked}: {error.reason}; {REMEDY}") from error


def read_json(path: Path) -> object:
    """Return the content of a JSON file of settings.

    Raises ValueError, in words, if it is no JSON, holds NaN or Infinity, or is too large.
    """
    if path.stat().st_size > _LARGEST_SETTINGS:
        raise ValueError(f"it has more than {_LARGEST_SETTINGS // 10**6} MB")
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"it holds {text}, which is no number")


def _without_nul(lines: TextIOWrapper) -> Iterator[str]:
    # read in bounds: a few kilobytes of a .gz file can unpack into one line of gigabytes
    read = iter(lambda: lines.readline(_LONGEST_LINE + 1), "")
    for number, line in enumerate(read, start=1):
        if len(line) > _LONGEST_LINE:
            raise EncodingError(
                f"line {number} has more than {_LONGEST_LINE:,} characters; break it up"
            )
        if "\0" in line:
            raise EncodingError(_holds_nul(number))
        yield line


def _first_problem(path: Path) -> str:
    """Return the first line that is not in UTF-8, in words."""
    with _binary(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if b"\0" in line:
                    return _holds_nul(number)
                byte = line[error.start : error.start + 1]
                likely = byte.decode("cp1252", "replace")
                return (
                    f"line {number} is not in UTF-8: byte 0x{byte.hex()}, which is '{likely}' in "
                    f"Windows-1252 (ANSI); {REMEDY}"
                )
    return f"it is not in UTF-8; {REMEDY}"


def _holds_nul(number: int) -> str:
    return (
        f"line {number} holds a NUL character, as UTF-16 without a byte order mark and damaged "
        f"files have; {REMEDY}"
    )


def _binary(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")
