"""Sources: a task's rows, from a Hub data set, a folder, or one or several files."""

import csv
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from loramix.data.formats import columns_of, is_definite, pairs_of, recognised
from loramix.data.tables import SUFFIXES, Choose, Row, as_rows, is_table, marks, read_table
from loramix.data.tasks import PACKAGE, Pair, Split, Task
from loramix.data.texts import whole_characters
from loramix.errors import DataError, HubError, did_you_mean
from loramix.storage.files import sha256
from loramix.storage.hub import find, is_hub_id

COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_ROWS = 20  # by which a format is recognised
# Words in the names of a folder's files that say which split they hold, as `datasets` reads them.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Files of a folder that only `datasets` understands.
_LAYOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


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


def locate(source: str) -> Path | None:
    """Return the file or folder that `source` names, or None if it is the id of a Hub data set.

    What exists on disk wins over an id of the same name. Raises DataError if a path leads nowhere.
    """
    path = _path(source)
    if path.exists():
        return path
    if is_hub_id(source) and not source.lower().endswith(SUFFIXES):
        return None
    raise DataError(f"no such file: {path}{_nearest_file(path)}")


def locate_all(source: str | Sequence[str]) -> list[Path] | None:
    """Return the file or folder that a task's source names, the files of its list or pattern in
    their order, or None if it is the id of a Hub data set.

    Raises DataError if one of them leads nowhere.
    """
    if isinstance(source, str) and not _is_pattern(source):
        path = locate(source)
        return None if path is None else [path]
    files: list[Path] = []
    for name in [source] if isinstance(source, str) else source:
        if _is_pattern(name):
            start = Path(_path(name).anchor)
            found = sorted(start.glob(str(_path(name).relative_to(start))))
            files += [path for path in found if path.is_file()]
            if not found:
                raise DataError(f"no file fits {name}; relative paths start at {Path.cwd()}")
        elif (path := locate(name)) is not None and path.is_file():
            files.append(path)
        else:
            raise DataError(f"a list of sources holds files alone, and {name} is no file")
    return list(dict.fromkeys(files))


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
    except DataError as error:
        raise DataError(f"task '{task.name}': {error}") from error
    folder = paths[0] if paths and len(paths) == 1 and paths[0].is_dir() else None
    if paths is not None and task.revision is not None:
        raise DataError(
            f"task '{task.name}': revision is for Hub data sets, and {paths[0]} is a "
            f"{'folder' if folder else 'file'}; leave it out"
        )
    if paths is None or (folder is not None and (files := _plain_files(folder)) is None):
        return _read_dataset(task, split, folder, choose, rows)
    if task.config is not None:
        raise DataError(
            f"task '{task.name}': config is for data sets, and {paths[0]} holds plain files; "
            "leave it out"
        )
    chosen = paths if folder is None else _of_split(task, split, folder, files or [])
    if folder is None and split != "train":
        chosen = [_own_file(task, split)]
    read: list[Row] = []
    for path in chosen:
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


def _plain_files(folder: Path) -> list[Path] | None:
    """Return the files of a folder that holds nothing but tables; None for any other layout, which
    `datasets` reads.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    readme = next((path for path in files if path.name.lower() == "readme.md"), None)
    if readme is not None and readme.read_bytes().startswith(b"---"):
        return None
    tables = [path for path in files if is_table(path)]
    other = any(path.is_dir() or path.suffix == ".py" or path.name in _LAYOUT for path in files)
    return None if other or not tables else tables


def _of_split(task: Task, split: str, folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the files that hold a split by their names; all of them where no name says so."""
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_in(path.name), []).append(path)
    if set(by_split) == {None} and split == "train":
        return by_split[None]
    unnamed = by_split.pop(None, [])
    if unnamed and by_split:
        raise DataError(
            f"task '{task.name}': {folder} holds files of splits, and {unnamed[0].name} says "
            f"none of {', '.join(_SPLIT_WORDS)} in its name"
        )
    wanted = _split_in(split)
    if wanted not in by_split:
        raise DataError(
            f"task '{task.name}': {folder} has no files of the split '{split}'; it has: "
            f"{', '.join(str(name) for name in by_split) or 'train'}"
        )
    return by_split[wanted]


def _split_in(name: str) -> str | None:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in _SPLIT_WORDS.items() if words & set(known)), None)


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


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?[") and not _path(source).exists()


def _path(source: str) -> Path:
    if source.startswith(PACKAGE):
        return Path(str(resources.files("loramix.data"))) / source.removeprefix(PACKAGE)
    return Path(source).expanduser()


def _nearest_file(path: Path) -> str:
    """Return a hint: the nearest name in the folder of `path`, or that there is no folder."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent} either; relative paths start at {Path.cwd()})"
    return did_you_mean(path.name, sorted(file.name for file in path.parent.iterdir()))


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
        message += f"; nor is there a file or folder of this name{_nearest_file(path)}"
    return DataError(message)
