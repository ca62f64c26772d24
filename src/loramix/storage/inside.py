"""What belongs to a mixture lies inside its folder: no link and no name leads out of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from loramix.errors import CheckpointError
from loramix.storage.files import sha256


def check_inside(file: Path, folder: Path) -> None:
    """Raise CheckpointError if a file of a mixture leads out of the mixture's folder."""
    real = Path(os.path.realpath(file))
    if not any(real.is_relative_to(place) for place in _places(folder)):
        raise CheckpointError(
            f"{file} leads out of the mixture, to {real}; a mixture holds its own files: put a "
            "copy in the place of the link"
        )


def check_digest(file: Path, digest: str, folder: Path | None = None) -> None:
    """Raise CheckpointError unless a file has this SHA-256; called before anything reads it.

    folder: that the file must not lead out of.
    """
    if folder is not None:
        check_inside(file, folder)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    if sha256(file) != digest:
        raise CheckpointError(
            f"{file} is not the file that was saved with this mixture: its SHA-256 differs"
        )


def files_inside(folder: Path) -> Iterator[Path]:
    """Yield the paths of all files of a mixture, relative to its folder.

    Raises CheckpointError for links that lead out of it or to a folder, and for what is no file.
    """
    for root, folders, names in os.walk(folder):
        for name in folders:
            if (Path(root) / name).is_symlink():
                raise CheckpointError(
                    f"{Path(root) / name} is a link to a folder, which a mixture does not have; "
                    "put a copy in its place"
                )
        for name in sorted(names):
            file = Path(root) / name
            check_inside(file, folder)
            if not file.is_file():
                raise CheckpointError(f"{file} is no file; remove it from the mixture")
            yield file.relative_to(folder)


def _places(folder: Path) -> list[Path]:
    """Return where a mixture's files may lie: in its folder, or in the Hub's cache beside it."""
    absolute = folder.absolute()
    places = [absolute]
    if absolute.parent.name == "snapshots":  # its files are links to ../../blobs
        places.append(absolute.parent.parent / "blobs")
    return [Path(os.path.realpath(place)) for place in places]
