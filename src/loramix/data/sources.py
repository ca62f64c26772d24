"""Sources: a task's rows, from a Hub data set, a folder, or one or several files."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from loramix.data.formats import columns_of, is_definite, pairs_of, recognised
from loramix.data.places import files_of_split, locate, locate_all, nearest_file
from loramix.data.tables import Choose, Row, as_rows, marks, read_table
from loramix.data.tasks import Pair, Split, Task
from loramix.data.texts import whole_characters
from loramix.errors import DataError, HubError, did_you_mean
from loramix.storage.files import sha256
from loramix.storage.hub import find

COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_ROWS = 20  # by which a format is recognised


def load_rows(task: Task) -> list[Pair]:
    """Return the (input, target) texts of every row of the task's split; see
    `loramix.data.formats`. Halves of characters are U+FFFD.

    Raises DataError if the source, its split or one of the columns is missing, or if it cannot be
    read.
    """
    pairs = read_split(resolved(task), task.split)
    return [(whole_characters(text), whole_characters(target)) for text, target in pairs]


def resolved(task: Task) -> Task:
    """Return the task with its format and columns, found by a look at the first rows.

    A task that names both of its columns is returned as it is. Raises DataError if there is no
    telling, or if the task's settings do not fit the format.
    """
    if is_definite(task):
        return task
    columns: list[str] = []

    def note(found: list[str]) -> Sequence[str]:
        columns[:] = columns or found
        return list(dict.fromkeys(found))

    rows = _read(task, task.split, note, rows=_FIRST_ROWS)
    changes = dict(recognised(task, columns, rows))
    if changes["format"] == "messages" and "duplicates" not in task.cleaning.model_fields_set:
        changes["cleaning"] = task.cleaning.model_copy(update={"duplicates": "pair"})
    try:
        definite = Task.model_validate(task.model_copy(update=changes).model_dump())
        columns_of(definite, columns)
    except ValidationError as error:
        raise DataError(f"task '{task.name}': {error.errors()[0]['msg']}") from error
    except DataError as error:
        raise DataError(f"task '{task.name}': {task.source}: {error}") from error
    return definite


def column_names(task: Task) -> list[str]:
    """Return the columns of a task's source; DataError if it cannot be read."""
    columns: list[str] = []

    def note(found: list[str]) -> Sequence[str]:
        columns.extend(found)
        return list(dict.fromkeys(found))

    _read(task, task.split, note, rows=1)
    return list(dict.fromkeys(columns))


def read_split(task: Task, split: str) -> list[Pair]:
    """Return the texts of one split of a resolved task, as they stand in the source."""

    def choose(found: list[str]) -> Sequence[str]:
        return columns_of(task, found)

    return pairs_of(task, _read(task, split, choose))


def source_fingerprint(task: Task) -> str:
    """Return a fingerprint of the source's content, without loading it.

    It is `id@commit` of a Hub data set and the SHA-256 of a file. That of a folder or of several
    files covers their names and bytes, hidden ones aside.
    """
    paths = locate_all(task.source)
    if paths is None:
        return f"{task.source}@{pinned(task).revision}"
    held_out = [path for split in own_splits(task) if (path := _split_file(task, split))]
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        named = [(file.relative_to(folder), file) for file in sorted(folder.rglob("*"))]
        lines = [
            f"{sha256(file)}  {name.as_posix()}\n"
            for name, file in named
            if file.is_file() and not any(part.startswith(".") for part in name.parts)
        ]
    elif len(paths) == 1 and not held_out:
        return sha256(paths[0])
    else:
        lines = [f"{sha256(file)}  {file.name}\n" for file in (*paths, *held_out)]
    return sha256("".join(lines))


def pinned(task: Task) -> Task:
    """Return a Hub task at the commit that its revision stands for now; other tasks unchanged.

    Where the Hub cannot be reached, the commit of the local copy counts. Raises DataError if there
    is no copy either.
    """
    if locate_all(task.source) is not None or COMMIT.fullmatch(task.revision or ""):
        return task
    name = str(task.source)  # a Hub id, no list of files
    try:  # the commit alone: no file is fetched
        found = find(name, revision=task.revision, kind="dataset", files=[])
    except HubError as error:
        raise DataError(
            f"task '{task.name}': there is no data set '{name}': it is {error}"
        ) from error
    return task.model_copy(update={"revision": found.revision})


def own_splits(task: Task) -> dict[Split, str]:
    """Return the splits of the source's own that a task names: `validation` and `test` -> name."""
    named: dict[Split, str | None] = {"validation": task.validation_split, "test": task.test_split}
    return {split: name for split, name in named.items() if name is not None}


# --- reading


def _read(task: Task, split: str, choose: Choose, rows: int | None = None) -> list[Row]:
    """Return the first `rows` rows of one split of a task's source, or all of them."""
    try:
        paths = locate_all(task.source)
        folder = paths[0] if paths and len(paths) == 1 and paths[0].is_dir() else None
        files = paths if folder is None else files_of_split(split, folder)
    except DataError as error:
        raise DataError(f"task '{task.name}': {error}") from error
    if paths is not None and task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {paths[0]} is a "
            f"{'folder' if folder else 'file'}; leave it out"
        )
    if paths is None or files is None:
        return _read_dataset(task, split, folder, choose, rows)
    if task.config is not None:
        raise DataError(
            f"task '{task.name}': config is for data sets, and {paths[0]} holds plain files; "
            "leave it out"
        )
    if folder is None and split != "train":
        files = [_own_file(task, split)]
    read: list[Row] = []
    for path in files:
        read += _read_file(task, path, choose, rows)
        if rows is not None and len(read) >= rows:
            break
    return read[:rows]


def _read_file(task: Task, path: Path, choose: Choose, rows: int | None) -> list[Row]:
    try:
        return read_table(path, choose, rows=rows, marked=task.empty_column)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"task '{task.name}': cannot read {path}: {error}") from error


def _read_dataset(
    task: Task, split: str, folder: Path | None, choose: Choose, rows: int | None
) -> list[Row]:
    import datasets

    name = str(task.source if folder is None else folder)
    config = {} if task.config is None else {"name": task.config}
    try:
        table = datasets.load_dataset(name, revision=task.revision, split=split, **config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(task, split, error, _configs(task, name)) from error
    try:
        chosen = list(choose(table.column_names))
    except DataError as error:
        raise DataError(f"task '{task.name}': {name}: {error}") from error
    if rows is not None:
        table = table.select(range(min(rows, len(table))))
    columns = {column: table[column] for column in chosen if column != task.empty_column}
    if task.empty_column in chosen:
        # As Arrow, pictures are not decoded.
        arrow = table.select_columns([task.empty_column]).with_format("arrow")[:]
        columns[task.empty_column] = marks(arrow[task.empty_column])
    return as_rows(columns)


def _split_file(task: Task, split: Split) -> Path | None:
    """Return the file that a task of files names for one of its splits; None for data sets."""
    paths = locate_all(task.source)
    if paths is None or paths[0].is_dir():
        return None
    return _own_file(task, own_splits(task)[split])


def _own_file(task: Task, split: str) -> Path:
    try:
        path = locate(split)
    except DataError as error:
        path, said = None, f": {error}"
    else:
        said = ""
    if path is None or not path.is_file():
        raise DataError(
            f"task '{task.name}': a file has one split, so '{split}' must be a file of its own"
            f"{said}; give one, or leave it out"
        )
    return path


def _configs(task: Task, name: str) -> list[str]:
    """Return the configurations of a data set, where it tells them."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name, revision=task.revision))
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return []  # it cannot be reached, which its error says


def _unreachable(task: Task, split: str, error: Exception, configs: Sequence[str]) -> DataError:
    """Return the error for a data set that does not load, on disk or on the Hub."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    message = f"task '{task.name}': cannot load {task.source}, split '{split}': {reason}"
    if len(configs) > 1 and task.config not in configs:
        near = did_you_mean(task.config or "", configs)
        message += f"; choose one with config: NAME{near}; there are: {', '.join(configs)}"
    if locate_all(task.source) is None:
        path = Path(str(task.source))
        message += f"; nor is there a file or folder of this name{nearest_file(path)}"
    return DataError(message)
