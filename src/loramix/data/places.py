"""Places: what a task's source names on disk."""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from loramix.data.tables import SUFFIXES, is_table
from loramix.data.tasks import PACKAGE
from loramix.errors import DataError, did_you_mean
from loramix.storage.hub import exists, first_line, is_hub_id, local

# Words in the names of a folder's files that say which split they hold, as `datasets` reads them.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Files of a folder that only `datasets` understands.
_LAYOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def locate(source: str) -> Path | None:
    """Return the file or folder that `source` names, or None if it is the id of a Hub data set.

    What exists on disk wins over an id of the same name. Raises DataError if a path leads nowhere.
    """
    path = _path(source)
    if exists(path):
        return path
    if is_hub_id(source) and not source.lower().endswith(SUFFIXES):
        return None
    raise DataError(f"no such file: {path}{nearest_file(path)}")


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
            try:
                found = sorted(start.glob(str(_path(name).relative_to(start))))
            except (OSError, ValueError) as error:  # too long, or no pattern
                raise DataError(f"{name} is no pattern of files: {first_line(error)}") from error
            files += [path for path in found if path.is_file()]
            if not found:
                raise DataError(f"no file fits {name}; relative paths start at {Path.cwd()}")
        elif (path := locate(name)) is not None and path.is_file():
            files.append(path)
        else:
            raise DataError(f"a list of sources holds files alone, and {name} is no file")
    return list(dict.fromkeys(files))


def _plain_files(folder: Path) -> list[Path] | None:
    """Return the files of a folder that holds nothing but tables; None for any other layout."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    readme = next((path for path in files if path.name.lower() == "readme.md"), None)
    if readme is not None and readme.read_bytes().startswith(b"---"):
        return None
    tables = [path for path in files if is_table(path)]
    other = any(path.is_dir() or path.suffix == ".py" or path.name in _LAYOUT for path in files)
    return None if other or not tables else tables


def files_of_split(split: str, folder: Path) -> list[Path] | None:
    """Return the files of a folder that hold a split by their names; all of them where no name says
    so; None for a folder in another layout, which `datasets` reads.

    Raises DataError if there are none, or if some say a split and others do not.
    """
    files = _plain_files(folder)
    if files is None:
        return None
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_in(path.name), []).append(path)
    if set(by_split) == {None} and split == "train":
        return by_split[None]
    unnamed = by_split.pop(None, [])
    if unnamed and by_split:
        raise DataError(
            f"{folder} holds files of splits, and {unnamed[0].name} says "
            f"none of {', '.join(_SPLIT_WORDS)} in its name"
        )
    wanted = _split_in(split)
    if wanted not in by_split:
        raise DataError(
            f"{folder} has no files of the split '{split}'; it has: "
            f"{', '.join(str(name) for name in by_split) or 'train'}"
        )
    return by_split[wanted]


def _split_in(name: str) -> str | None:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in _SPLIT_WORDS.items() if words & set(known)), None)


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?[") and not exists(_path(source))


def _path(source: str) -> Path:
    if source.startswith(PACKAGE):
        return Path(str(resources.files("loramix.data"))) / source.removeprefix(PACKAGE)
    return local(source)


def nearest_file(path: Path) -> str:
    """Return a hint: the nearest name in the folder of `path`, or that there is no folder."""
    if not exists(path.parent) or not path.parent.is_dir():
        return f" (there is no folder {path.parent} either; relative paths start at {Path.cwd()})"
    return did_you_mean(path.name, sorted(file.name for file in path.parent.iterdir()))
