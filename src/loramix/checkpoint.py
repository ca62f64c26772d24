"""A mixture on disk: gates, untouched experts and one configuration file; written whole or not at all.

my-mixture/
  mixture_config.json     schema version, base and revision, ordered experts, gate, package versions
  gate.safetensors        gate parameters only
  experts/<name>/         PEFT adapters, each loads alone with PeftModel.from_pretrained
"""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import snapshot_download
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from loramix.atomic import atomic_folder
from loramix.config import GateConfig
from loramix.errors import CheckpointError
from loramix.experts import load_expert
from loramix.mixture import MixtureModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA: Literal[1] = 1
_CONFIG, _GATES, _EXPERTS = "mixture_config.json", "gate.safetensors", "experts"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class ExpertRecord(BaseModel):
    """One expert: where it came from and the SHA-256 of its weights file."""

    name: str
    source: str
    sha256: str


class MixtureConfig(BaseModel):
    """The contents of `mixture_config.json`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = SCHEMA
    base: str
    revision: str | None
    experts: list[ExpertRecord]
    gate: GateConfig
    versions: dict[str, str]


def save(mixture: MixtureModel, path: Path) -> None:
    """Write the mixture to folder `path`, replacing an older one; an interrupted save leaves `path` as it was."""
    records = [
        ExpertRecord(name=expert.name, source=expert.source, sha256=_sha256(expert.folder / _ADAPTER_FILES[1]))
        for expert in mixture.experts
    ]
    config = MixtureConfig(
        base=mixture.base_name,
        revision=mixture.revision,
        experts=records,
        gate=mixture.gate_config,
        versions={package: version(package) for package in ("loramix", "torch", "transformers", "peft")},
    )
    with atomic_folder(path) as folder:
        (folder / _CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
        save_file({key: tensor.contiguous() for key, tensor in mixture.gate_state().items()}, folder / _GATES)
        for expert in mixture.experts:
            copy = folder / _EXPERTS / expert.name
            copy.mkdir(parents=True)
            for file in _ADAPTER_FILES:
                shutil.copyfile(expert.folder / file, copy / file)


def load(path: str | Path, base: "str | Path | PreTrainedModel | None" = None) -> MixtureModel:
    """Read a mixture from a folder or Hub id.

    Raises CheckpointError if a file is missing or changed, or if a newer loramix wrote it.
    """
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path)))
    config = read_config(folder)
    for record in config.experts:
        weights = folder / _EXPERTS / record.name / _ADAPTER_FILES[1]
        if not weights.is_file() or _sha256(weights) != record.sha256:
            raise CheckpointError(f"{weights} is missing or not the file that was saved with this mixture")
    experts = [load_expert(record.name, folder / _EXPERTS / record.name) for record in config.experts]
    model, revision = _base(config, base)
    mixture = MixtureModel(model, experts, config.gate, base_name=config.base, revision=revision)
    mixture.load_gate_state(load_file(folder / _GATES))
    return mixture.eval()


def read_config(folder: Path) -> MixtureConfig:
    """Read and check `mixture_config.json`."""
    file = folder / _CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} is no mixture: it holds no {_CONFIG}")
    try:
        return MixtureConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{file} cannot be read by loramix {version('loramix')} (schema {SCHEMA}); it is damaged or from a newer "
            f"version, then: pip install --upgrade loramix\n{error}"
        ) from error


def _base(config: MixtureConfig, base: "str | Path | PreTrainedModel | None") -> "tuple[PreTrainedModel, str | None]":
    from loramix.bases import load_base

    if base is None:
        loaded = load_base(config.base, revision=config.revision)
        return loaded.model, loaded.revision
    if isinstance(base, str | Path):
        loaded = load_base(str(base))
        return loaded.model, loaded.revision
    return base, None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
