"""Mixtures on the Hugging Face Hub: a repository holds what a mixture's folder holds."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from loramix.errors import CheckpointError
from loramix.storage.files import atomic_folder, check_replaceable
from loramix.storage.format import CONFIG, local_folder, read_config


def push(
    folder: Path, repository: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Upload the mixture in `folder` to a repository, made if needed, and return the commit's
    address.
    """
    read_config(folder)
    api = HfApi(token=token)
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(
            api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload mixture"
            ).commit_url
        )
    except (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:  # ValueError: a name, a card
        raise CheckpointError(f"the mixture was not uploaded to '{repository}': {error}") from error


def pull(repository: str, folder: Path, *, revision: str | None = None) -> None:
    """Write a copy of a mixture on the Hub to `folder`, whole or not at all."""
    check_replaceable(folder, CONFIG)
    snapshot = local_folder(repository, revision=revision)
    read_config(snapshot)
    with atomic_folder(folder) as copy:
        shutil.copytree(snapshot, copy, dirs_exist_ok=True)  # follows the links of the cache
