"""Resolve a name to a folder, on disk or fetched from the Hugging Face Hub."""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from loramix.errors import HubError
from loramix.storage.replacing import restore, target

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PLACE = re.compile(
    r"(?P<repository>\w[\w.-]*(/\w[\w.-]*)?)(?P<folder>(/\w[\w.-]*)*)(@(?P<revision>[\w./-]+))?"
)
Kind = Literal["model", "dataset"]


class Found(NamedTuple):
    """A folder and, if it came from the Hub, its commit."""

    folder: Path
    revision: str | None


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    kind: Kind = "model",
    files: list[str] | None = None,
) -> Found:
    """Return the folder that `name` stands for: what lies on disk, else a Hub id at `revision`.

    files: patterns of what is fetched from the Hub; None fetches the whole repository.
    Raises HubError, whose text reads on from "it is", if there is no such folder.
    """
    if "\0" in str(name):
        raise HubError("no name, as it holds a NUL character; write another one")
    folder = local(name)
    try:
        restore(target(folder))
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError as error:  # such as a name too long, or a folder that may not be entered
        raise HubError(f"a path that the system refuses ({error.strerror or error})") from error
    if is_folder:
        if revision is not None:
            raise HubError(
                f"a folder, which has no revisions, so it cannot be had at '{revision}'; leave the "
                "revision out"
            )
        return Found(folder, None)
    if is_file:
        raise HubError(f"a file; give the folder that holds it: {folder.parent}")
    if not is_hub_id(str(name)):
        raise HubError(
            "no folder, and no Hub id; give an existing folder, or a Hub id such as org/name"
        )
    # Imported when needed: it takes long. Unlike hf_hub_download, snapshot_download does not try
    # for half a minute to reach a hub that is unreachable.
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            str(name), revision=revision, allow_patterns=files, repo_type=kind
        )
    except (OSError, ValueError) as error:  # the Hub's own errors are of these two kinds
        raise HubError(f"no folder, {_reason(error, kind)}") from error
    return Found(Path(snapshot), Path(snapshot).name)  # a snapshot is named after its commit


def local(name: str | Path) -> Path:
    """Return the path of a name, in which ~ is the home folder where there is such a user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own fails for an unknown user


def exists(name: str | Path) -> bool:
    """Return whether anything lies on disk under a name; not where the system refuses to look, as
    for a name too long.
    """
    return os.path.exists(local(name))  # noqa: PTH110  # Path's own raises there


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form of a Hub repository id."""
    return bool(HUB_ID.fullmatch(name))


def split(name: str) -> tuple[str, str, str | None]:
    """Return repository, folder in it and revision of `owner/name/folder@revision`; the last two
    may be absent, and any other text is returned as it is.
    """
    parts = _PLACE.fullmatch(name)
    if parts is None:
        return name, "", None
    return parts["repository"], parts["folder"].lstrip("/"), parts["revision"]


def _reason(error: Exception, kind: Kind) -> str:
    """Return the cause of a failed download and its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    thing = {"model": "model", "dataset": "data set"}[kind]
    if constants.HF_HUB_OFFLINE:
        return (
            "and not in the local Hub cache, while HF_HUB_OFFLINE forbids to ask the hub; "
            f"unset it to fetch the {thing}"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "and not in the local Hub cache, and the hub cannot be reached; "
            "connect, or name a folder that holds it"
        )
    if isinstance(error, GatedRepoError):
        return (
            "and on the hub its owner asks for consent; "
            "accept the terms on its page, then run: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"and the hub has no such {thing} that you may see; for a private one, "
            "run: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"and the hub has the {thing}, but not this revision; leave it out for the newest"
    return f"and the hub gave nothing: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
