"""Checkpoints of a training: what transformers saves, and beside it

trainable.safetensors   the trained parameters alone
progress.safetensors    what the trainer itself has summed up since the last line of its log
sha256.json             the digests of all files, written last: without it, a checkpoint is no whole
                        one
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loramix.errors import StageError
from loramix.storage.files import sha256, write_text

log = logging.getLogger("loramix")
TRAINABLE = "trainable.safetensors"
_PROGRESS, _DIGESTS = "progress.safetensors", "sha256.json"


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name."""
    return {
        name: value.detach().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def save_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Write the trained parameters to a checkpoint."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    # what lay here was killed while it was written: it is no whole one before its end
    (checkpoint / _DIGESTS).unlink(missing_ok=True)
    save_file(trainable_state(model), checkpoint / TRAINABLE)


@torch.no_grad()
def load_trainable(model: nn.Module, file: Path) -> None:
    """Set the trained parameters from a file that must hold all of them."""
    saved = load_file(file)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(saved[name])


def save_progress(progress: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Write what a trainer has summed up to a checkpoint."""
    save_file({key: value.contiguous() for key, value in progress.items()}, checkpoint / _PROGRESS)


def load_progress(checkpoint: Path) -> dict[str, Tensor]:
    """Return what a trainer had summed up as it saved a checkpoint."""
    return dict(load_file(checkpoint / _PROGRESS))


def seal(checkpoint: Path) -> None:
    """Write the digests of all files of a checkpoint, which is whole then."""
    digests = {path.name: sha256(path) for path in _files(checkpoint)}
    write_text(checkpoint / _DIGESTS, json.dumps(digests, indent=2))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole and undamaged checkpoint, if there is one; a damaged one is named in
    the log.
    """
    found = [file.parent for file in folder.glob(f"checkpoint-*/{_DIGESTS}")]
    for checkpoint in sorted(found, key=_step, reverse=True):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        log.warning("%s is damaged (%s), so training goes on from before", checkpoint, damage)
    return None


def refuse_damaged(checkpoint: Path) -> None:
    """Raise StageError unless a checkpoint is as it was saved."""
    damage = _damage(checkpoint)
    if damage is not None:
        raise StageError(
            f"{checkpoint} is damaged: {damage} is not the file that was saved; delete "
            f"{checkpoint.parent}, and the training starts again"
        )


def _damage(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint is not the one that was saved."""
    try:
        digests = json.loads((checkpoint / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _DIGESTS
    if not isinstance(digests, dict) or TRAINABLE not in digests:
        return _DIGESTS
    for name, digest in digests.items():
        file = checkpoint / name
        if not file.is_file() or sha256(file) != digest:
            return str(name)
    return None


def _files(checkpoint: Path) -> Iterator[Path]:
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and path.name != _DIGESTS:
            yield path


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
