"""Sources: read a task's columns from a Hub data set, a folder or a file, and name what was
read.
"""

import csv
import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.data.choices import Question, multiple_choice
from loramix.data.tasks import PACKAGE, Task
from loramix.errors import DataError, did_you_mean
from loramix.storage.files import sha256

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")

Row = Mapping[str, object]  # the values of the task's columns


def load_rows(task: Task) -> list[tuple[str, str]]:
    """Return the (input, target) texts of every row as they stand in the source; missing values are
    empty texts.

    Rows in which `empty_column` holds something are left out. With `choices_column`, the texts are
    those of `loramix.data.choices`, and both are empty for a row that lacks its question or its
    answer. Raises DataError if the source, its split or one of the columns is missing, or if it
    cannot be read.
    """
    path = locate(task.source)
    rows = _read_dataset(task, path) if path is None or path.is_dir() else _read_file(task, path)
    numbered = list(enumerate(rows, start=1))
    if task.empty_column is not None:
        numbered = [
            (number, row) for number, row in numbered if _is_missing(row[task.empty_column])
        ]
    if task.choices_column is not None:
        return _questions(task, task.choices_column, numbered)
    return [
        (_text(task, task.input_column, row), _text(task, task.target_column, row))
        for _, row in numbered
    ]


def locate(source: str) -> Path | None:
    """Return the file or folder that `source` names, or None if it is the id of a Hub data set.

    What exists on disk wins over an id of the same name. Raises DataError for a path where nothing
    is.
    """
    path = _package_path(source) if source.startswith(PACKAGE) else Path(source).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(source) and not source.lower().endswith(SUFFIXES):
        return None
    raise DataError(f"no such file: {path}{_nearest_file(path)}")


def source_fingerprint(task: Task) -> str:
    """Return what identifies the source's content, without loading it: SHA-256 of a file, or Hub id
    @ commit.

    A folder's fingerprint covers the names and bytes of its files, hidden ones aside.
    """
    path = locate(task.source)
    if path is None:
        return f"{task.source}@{pinned(task).revision}"
    if path.is_file():
        return sha256(path)
    names = (file for file in sorted(path.rglob("*")) if file.is_file())
    visible = (
        file
        for file in names
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    lines = (f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in visible)
    return sha256("".join(lines))


def pinned(task: Task) -> Task:
    """Return `task` with its Hub revision replaced by the commit that it stands for now; other
    tasks unchanged.

    Where the Hub cannot be reached, the commit of the local copy counts; without one this raises
    DataError.
    """
    if locate(task.source) is not None or COMMIT.fullmatch(task.revision or ""):
        return task
    from huggingface_hub import snapshot_download

    try:  # downloads no file; the folder's name is the commit
        folder = snapshot_download(
            task.source, repo_type="dataset", revision=task.revision, allow_patterns=[]
        )
    except (OSError, ValueError) as error:
        raise _unreachable(task, error) from error
    return task.model_copy(update={"revision": Path(folder).name})


def _read_dataset(task: Task, folder: Path | None) -> list[Row]:
    import datasets

    if folder is not None and task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {folder} is a folder; leave "
            "it out"
        )
    name = task.source if folder is None else str(folder)
    try:
        table = datasets.load_dataset(name, revision=task.revision, split=task.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(task, error) from error
    _require_columns(task, table.column_names)
    columns = {column: table[column] for column in _text_columns(task)}
    if task.empty_column is not None:
        arrow = table.select_columns([task.empty_column]).with_format("arrow")[
            :
        ]  # in this format nothing is decoded
        columns[task.empty_column] = _marks(arrow[task.empty_column])
    return _as_rows(columns)


def _read_file(task: Task, path: Path) -> list[Row]:
    if task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {path} is a file; leave it out"
        )
    try:
        return _read_kind(task, path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"task '{task.name}': cannot read {path}: {error}") from error


def _read_kind(task: Task, path: Path) -> list[Row]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _read_parquet(task, path)
    if name.endswith((".csv", ".csv.gz")):
        with _open_text(path) as lines:
            return _read_csv(task, lines)
    if name.endswith((".jsonl", ".jsonl.gz")):
        with _open_text(path) as lines:
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


def _read_csv(task: Task, lines: TextIOWrapper) -> list[Row]:
    reader = csv.DictReader(lines, strict=True)
    _require_columns(task, reader.fieldnames or ())
    rows: list[Row] = []
    for row in reader:
        if None in row:  # cells beyond the header: a comma outside quotes has shifted the columns
            raise DataError(
                f"task '{task.name}': line {reader.line_num} has more cells than the header"
            )
        rows.append(row)
    return rows


def _read_jsonl(task: Task, lines: TextIOWrapper) -> list[Row]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(
                f"task '{task.name}': line {number} is no JSON object: {line.strip()[:60]}"
            )
        rows.append(row)
    _require_columns(task, list(dict.fromkeys(column for row in rows for column in row)))
    return [{column: row.get(column) for column in _columns(task)} for row in rows]


def _text_columns(task: Task) -> list[str]:
    named = (task.input_column, task.target_column, task.choices_column)
    return list(dict.fromkeys(column for column in named if column is not None))


def _columns(task: Task) -> list[str]:
    return list(
        dict.fromkeys(
            [*_text_columns(task), *([task.empty_column] if task.empty_column is not None else [])]
        )
    )


def _require_columns(task: Task, found: Sequence[str]) -> None:
    missing = [column for column in _columns(task) if column not in found]
    if missing:
        named = " and ".join(f"'{column}'{did_you_mean(column, found)}" for column in missing)
        raise DataError(
            f"task '{task.name}': {task.source} has no column {named}; it has: "
            f"{', '.join(found) or 'none at all'}"
        )


def _marks(column: "ChunkedArray") -> list[object]:
    """Return the column's values, those of a nested column as True: pictures, with their bytes and
    path, are large.
    """
    from pyarrow import types

    if types.is_nested(column.type):
        return [True if there else None for there in column.is_valid().to_pylist()]
    return list(column.to_pylist())


def _as_rows(columns: Mapping[str, Iterable[object]]) -> list[Row]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _questions(
    task: Task, choices_column: str, rows: Sequence[tuple[int, Row]]
) -> list[tuple[str, str]]:
    """Return input and target of every question; rows without a question or an answer come last."""
    asked = [
        Question(
            number,
            _text(task, task.input_column, row),
            row[choices_column],
            row[task.target_column],
        )
        for number, row in rows
        if not _is_missing(row[task.input_column]) and not _is_missing(row[task.target_column])
    ]
    return multiple_choice(asked, task=task.name) + [("", "")] * (len(rows) - len(asked))


def _text(task: Task, column: str, row: Row) -> str:
    value = row[column]
    if isinstance(value, str):
        return value
    if _is_missing(value):
        return ""
    if isinstance(value, int | float):
        return str(value)
    raise DataError(
        f"task '{task.name}': column '{column}' must hold texts, and holds {type(value).__name__} "
        "values"
    )


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _open_text(path: Path) -> TextIOWrapper:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _package_path(source: str) -> Path:
    return Path(str(resources.files("loramix.data"))) / source.removeprefix(PACKAGE)


def _nearest_file(path: Path) -> str:
    """Return a hint at the nearest name in the folder of `path`, or that there is no such
    folder.
    """
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
