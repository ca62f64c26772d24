"""Where adapters lie: a folder, a part of a Hub repository, a training's output; and the tensors
in their files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from loramix.errors import ExpertError, HubError
from loramix.storage.adapter_config import ADAPTER_CONFIG
from loramix.storage.hub import exists, find, first_line, split

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"  # of PEFT before 0.4
_DEPTH = ("*", "*/*")  # search depth: run/checkpoint-10, run/models/haiku


@dataclass(frozen=True)
class AdapterFiles:
    """The two files of an adapter.

    source: the folder, or the Hub repository and the folder in it.
    revision: the commit of an adapter from the Hub.
    """

    source: str
    revision: str | None
    config: Path
    weights: Path


def find_adapter(expert: str, source: str, *, revision: str | None = None) -> AdapterFiles:
    """Return the files of the adapter that `source` stands for.

    source: a folder, or `owner/name`, `owner/name/folder`, `owner/name@revision` of the Hub. A
        folder without an adapter stands for the only adapter in its subfolders.
    Raises ExpertError if there is no adapter, or several.
    """
    if exists(source):
        place, inner = source, ""
    else:
        place, inner, named = split(source)
        if named and revision and named != revision:
            raise ExpertError(
                f"expert '{expert}': '{source}' names revision '{named}', and '{revision}' is asked"
            )
        revision = revision or named
    root, commit = _fetch(expert, source, place, inner, "adapter_*", revision)
    if not (root / ADAPTER_CONFIG).is_file():
        if commit is not None:  # of a repository, the settings of all adapters are fetched first
            _fetch(expert, source, place, inner, f"*{ADAPTER_CONFIG}", commit)
        if not root.is_dir():
            raise ExpertError(
                f"expert '{expert}': there is no adapter '{source}': '{place}' has no folder "
                f"'{inner}' with an adapter"
            )
        below = _only_adapter(expert, source, root)
        inner = f"{inner}/{below}" if inner else below
        root, _ = _fetch(expert, source, place, inner, "adapter_*", commit)
    weights = next((root / n for n in (ADAPTER_WEIGHTS, _PICKLED) if (root / n).is_file()), None)
    if weights is None:
        raise ExpertError(
            f"expert '{expert}': {root} holds no {ADAPTER_WEIGHTS} (nor {_PICKLED}) beside its "
            f"{ADAPTER_CONFIG}, only {_listed(sorted(path.name for path in root.iterdir()))}"
        )
    exact = f"{place.rstrip('/')}/{inner}" if inner else place
    return AdapterFiles(exact, commit, root / ADAPTER_CONFIG, weights)


def read_tensors(expert: str, file: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter; raises ExpertError if the file is damaged or holds more."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        raise ExpertError(
            f"expert '{expert}': {file} cannot be read{_pointer(file)}: {first_line(error)}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ExpertError(f"expert '{expert}': {file} holds more than tensors; it is not read")
    return state


def _fetch(
    expert: str, source: str, place: str, inner: str, files: str, revision: str | None
) -> tuple[Path, str | None]:
    """Return folder `inner` of a place with these files, and the commit of a place on the Hub."""
    try:
        pattern = f"{inner}/{files}" if inner else files
        found = find(place, revision=revision, files=[pattern])
    except HubError as error:
        raise ExpertError(
            f"expert '{expert}': there is no adapter '{source}': it is {error}"
        ) from error
    return found.folder / inner, found.revision


def _only_adapter(expert: str, source: str, root: Path) -> str:
    """Return the subfolder of `root` that holds its only adapter."""
    files = [file for pattern in _DEPTH for file in root.glob(f"{pattern}/{ADAPTER_CONFIG}")]
    names = sorted(file.parent.relative_to(root).as_posix() for file in files)
    if len(names) == 1:
        return names[0]
    if names:
        raise ExpertError(
            f"expert '{expert}': '{source}' holds {len(names)} adapters in subfolders: "
            f"{_listed(names)}; name one of them, such as '{source.rstrip('/')}/{names[0]}'"
        )
    there = _listed(sorted(path.name for path in root.iterdir()))
    model = ": it is a whole model" if (root / "config.json").is_file() else ""
    raise ExpertError(
        f"expert '{expert}': '{source}' holds no {ADAPTER_CONFIG}, here or in subfolders{model}; "
        f"an expert is the folder of a PEFT adapter, and this one holds {there}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "nothing"


def _pointer(file: Path) -> str:
    """Return a hint if the file only points at the one that Git LFS keeps elsewhere."""
    with file.open("rb") as opened:
        is_pointer = opened.read(20).startswith(b"version https://git-")
    return ", it is a pointer of Git LFS (run: git lfs pull)" if is_pointer else ""
