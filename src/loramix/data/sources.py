"""Sources: the columns of a task, read from a Hub data set, a folder or a file."""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.data.choices import MultipleChoice, multiple_choice
from loramix.data.tasks import PACKAGE, Task
from loramix.data.texts import whole_characters
from loramix.errors import DataError, HubError, did_you_mean
from loramix.storage.files import long_fields, sha256
from loramix.storage.hub import find, is_hub_id
from loramix.storage.texts import text_lines

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
COMMIT = re.compile(r"[0-9a-f]{40}")

Row = Mapping[str, object]  # the values of the task's columns


def load_rows(task: Task) -> list[tuple[str, str]]:
    """Return the (input, target) texts of every row; missing values are empty texts, and halves of
    characters are U+FFFD.

    Rows in which `empty_column` holds something are left out. With `choices_column`, the texts are
    those of `loramix.data.choices`; rows that lack their question or their answer come last, with
    two empty texts. Raises DataError if the source, its split or one of the columns is missing, or
    if it cannot be read.
    """
    path = locate(task.source)
    rows = _read_dataset(task, path) if path is None or path.is_dir() else _read_file(task, path)
    numbered = list(enumerate(rows, start=1))  # before any is left out, as errors name rows
    if task.empty_column is not None:
        empty = task.empty_column
        numbered = [(number, row) for number, row in numbered if _is_missing(row[empty])]
    texts: list[tuple[str, str]] = []
    if task.choices_column is not None:
        texts = _choice_texts(task, task.choices_column, numbered)
    else:
        for _, row in numbered:
            source, target = _pair_columns(task)
            texts.append((_text(task, source, row), _text(task, target, row)))
    return [(whole_characters(text), whole_characters(target)) for text, target in texts]


def locate(source: str) -> Path | None:
    """Return the file or folder that `source` names, or None if it is the id of a Hub data set.

    What exists on disk wins over an id of the same name. Raises DataError if a path leads nowhere.
    """
    path = _package_path(source) if source.startswith(PACKAGE) else Path(source).expanduser()
    if path.exists():
        return path
    if is_hub_id(source) and not source.lower().endswith(SUFFIXES):
        return None
    raise DataError(f"no such file: {path}{_nearest_file(path)}")


def source_fingerprint(task: Task) -> str:
    """Return a fingerprint of the source's content, without loading it.

    It is `id@commit` of a Hub data set and the SHA-256 of a file. A folder's covers the names and
    bytes of its files, hidden ones aside.
    """
    path = locate(task.source)
    if path is None:
        return f"{task.source}@{pinned(task).revision}"
    if path.is_file():
        return sha256(path)
    lines: list[str] = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden:
            lines.append(f"{sha256(file)}  {name.as_posix()}\n")
    return sha256("".join(lines))


def pinned(task: Task) -> Task:
    """Return a Hub task at the commit that its revision stands for now; other tasks unchanged.

    Where the Hub cannot be reached, the commit of the local copy counts. Raises DataError if there
    is no copy either.
    """
    if locate(task.source) is not None or COMMIT.fullmatch(task.revision or ""):
        return task
    try:  # the commit alone: no file is fetched
        found = find(task.source, revision=task.revision, kind="dataset", files=[])
    except HubError as error:
        raise DataError(
            f"task '{task.name}': there is no data set '{task.source}': it is {error}"
        ) from error
    return task.model_copy(update={"revision": found.revision})


def _read_dataset(task: Task, folder: Path | None) -> list[Row]:
    import datasets

    if folder is not None and task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {folder} is a folder; "
            "leave it out"
        )
    name = task.source if folder is None else str(folder)
    try:
        table = datasets.load_dataset(name, revision=task.revision, split=task.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(task, error) from error
    _require_columns(task, table.column_names)
    columns = {column: table[column] for column in _text_columns(task)}
    if task.empty_column is not None:
        # As Arrow, pictures are not decoded.
        arrow = table.select_columns([task.empty_column]).with_format("arrow")[:]
        columns[task.empty_column] = _marks(arrow[task.empty_column])
    return _as_rows(columns)


def _read_file(task: Task, path: Path) -> list[Row]:
    if task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {path} is a file; leave it out"
        )
    try:
        return _read_kind(task, path)
    except DataError:  # a ValueError too, and in words already
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"task '{task.name}': cannot read {path}: {error}") from error


def _read_kind(task: Task, path: Path) -> list[Row]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _read_parquet(task, path)
    if name.endswith((".csv", ".csv.gz")):
        with text_lines(path) as lines, long_fields():
            return _read_csv(task, lines)
    if name.endswith((".jsonl", ".jsonl.gz")):
        with text_lines(path) as lines:
            return _read_jsonl(task, lines)
    raise DataError(
        f"task '{task.name}': {path} is of no known kind; there are: {', '.join(SUFFIXES)}"
    )


def _read_parquet(task: Task, path: Path) -> list[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _require_columns(task, file.schema_arrow.names)
        table = file.read(columns=_columns(task))
    columns = {column: table[column].to_pylist() for column in _text_columns(task)}
    if task.empty_column is not None:
        columns[task.empty_column] = _marks(table[task.empty_column])
    return _as_rows(columns)


def _read_csv(task: Task, lines: Iterable[str]) -> list[Row]:
    reader = csv.DictReader(lines, strict=True)
    _require_columns(task, list(reader.fieldnames or ()))
    rows: list[Row] = []
    for row in reader:
        if None in row:  # cells beyond the header: a comma outside quotes has shifted the columns
            raise DataError(
                f"task '{task.name}': line {reader.line_num} has more cells than the header"
            )
        rows.append(row)
    return rows


def _read_jsonl(task: Task, lines: Iterable[str]) -> list[Row]:
    rows: list[dict[str, object]] = []
    found: dict[str, None] = {}  # the columns of all rows, as rows may lack some
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            array = "; write one object per line, not an array" if line.startswith("[") else ""
            raise ValueError(f"line {number} is no JSON ({error.msg}){array}") from error
        if not isinstance(row, dict):
            raise DataError(
                f"task '{task.name}': line {number} is no JSON object: {line.strip()[:60]}"
            )
        rows.append(row)
        found |= dict.fromkeys(row)
    _require_columns(task, list(found))
    columns = _columns(task)
    return [dict(zip(columns, map(row.get, columns), strict=True)) for row in rows]


def _text_columns(task: Task) -> list[str]:
    named = (*_pair_columns(task), task.choices_column)
    return list(dict.fromkeys(column for column in named if column is not None))


def _pair_columns(task: Task) -> tuple[str, str]:
    if task.input_column is None or task.target_column is None:
        raise DataError(f"task '{task.name}': name its input_column and its target_column")
    return task.input_column, task.target_column


def _columns(task: Task) -> list[str]:
    columns = _text_columns(task)
    if task.empty_column is not None and task.empty_column not in columns:
        columns.append(task.empty_column)
    return columns


def _require_columns(task: Task, found: list[str]) -> None:
    twice = [column for column in _columns(task) if found.count(column) > 1]
    if twice:
        raise DataError(
            f"task '{task.name}': {task.source} has several columns '{twice[0]}'; "
            "rename all but one"
        )
    missing = [column for column in _columns(task) if column not in found]
    if missing:
        named = " and ".join(f"'{column}'{did_you_mean(column, found)}" for column in missing)
        raise DataError(
            f"task '{task.name}': {task.source} has no column {named}; it has: "
            f"{', '.join(found) or 'none at all'}{_other_separator(found)}"
        )


def _other_separator(header: Sequence[str]) -> str:
    """Return a hint if the only column of a header is several, with another separator than commas
    between them.
    """
    names = {";": "semicolons", "\t": "tabs", "|": "bars"}
    between = next((mark for mark in names if len(header) == 1 and mark in header[0]), None)
    if between is None:
        return ""
    return f"; its columns are separated by {names[between]}: save it with commas between them"


def _marks(column: "ChunkedArray") -> list[object]:
    """Return the values of a column; of a nested one True or None, as pictures are large."""
    from pyarrow import types

    if types.is_nested(column.type):
        return [valid or None for valid in column.is_valid().to_pylist()]
    return list(column.to_pylist())


def _as_rows(columns: Mapping[str, Iterable[object]]) -> list[Row]:
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in rows]


def _choice_texts(
    task: Task, choices_column: str, rows: Sequence[tuple[int, Row]]
) -> list[tuple[str, str]]:
    """Return the input and target of every row; incomplete rows come last, as empty texts."""
    complete: list[MultipleChoice] = []
    source, target = _pair_columns(task)
    for number, row in rows:
        answer = row[target]
        if not _is_missing(row[source]) and not _is_missing(answer):
            question = _text(task, source, row)
            complete.append(MultipleChoice(number, question, row[choices_column], answer))
    incomplete = len(rows) - len(complete)
    return multiple_choice(complete, task=task.name) + [("", "")] * incomplete


def _text(task: Task, column: str, row: Row) -> str:
    value = row[column]
    if isinstance(value, str):
        return value
    if _is_missing(value):
        return ""
    if isinstance(value, int | float):
        return str(value)
    raise DataError(
        f"task '{task.name}': column '{column}' must hold texts, "
        f"and holds {type(value).__name__} values"
    )


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _package_path(source: str) -> Path:
    return Path(str(resources.files("loramix.data"))) / source.removeprefix(PACKAGE)


def _nearest_file(path: Path) -> str:
    """Return a hint: the nearest name in the folder of `path`, or that there is no folder."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent} either; relative paths start at {Path.cwd()})"
    return did_you_mean(path.name, sorted(file.name for file in path.parent.iterdir()))


def _unreachable(task: Task, error: Exception) -> DataError:
    """Return the error for a data set that does not load, on disk or on the Hub."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    message = f"task '{task.name}': cannot load {task.source}, split '{task.split}': {reason}"
    if locate(task.source) is None:
        message += f"; nor is there a file or folder of this name{_nearest_file(Path(task.source))}"
    return DataError(message)
