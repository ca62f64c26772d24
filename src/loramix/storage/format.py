"""A mixture on disk: gates, untouched experts and one configuration file; written whole or not at
all, without pickle.

my-mixture/
  README.md               model card, see `loramix.storage.card`
  mixture_config.json     schema version, base and revision, ordered experts, gate, prompts, package
  versions gate.safetensors        gate parameters only
  experts/<name>/         PEFT adapters, each loads alone with PeftModel.from_pretrained; absent
  where only referred to recipe.yaml metrics.json  of the run that made it, if one did
"""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from loramix.config import GateConfig, Prompting
from loramix.errors import CheckpointError
from loramix.mixture.model import MixtureModel
from loramix.storage.experts import ADAPTER_FILES, Expert, load_expert
from loramix.storage.files import atomic_folder, check_replaceable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA: Literal[1] = 1
CONFIG, GATES = "mixture_config.json", "gate.safetensors"
_EXPERTS = "experts"


class ExpertRecord(BaseModel):
    """One expert: where it came from, the SHA-256 of its two files, and what of it was left out.

    folder: where its copy lies, relative to the mixture; None where it is read from `source` at
        `revision`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    source: str
    revision: str | None
    folder: str | None
    sha256: dict[str, str]
    lossy: tuple[str, ...] = ()


class MixtureConfig(BaseModel):
    """The contents of `mixture_config.json`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = SCHEMA
    base: str
    revision: str | None
    experts: list[ExpertRecord]
    gate: GateConfig
    gate_sha256: str
    prompting: Prompting = Prompting()
    versions: dict[str, str]


def save(
    mixture: MixtureModel, path: Path, *, experts: Literal["copy", "reference"] = "copy"
) -> None:
    """Write the mixture to folder `path`, replacing an older one; an interrupted save leaves `path`
    as it was.

    experts: whether their files are copied, or read again from where they came from.
    """
    from loramix.storage.card import write_card

    check_replaceable(path, CONFIG)
    with atomic_folder(path) as folder:
        save_file(
            {key: tensor.contiguous() for key, tensor in mixture.gate_state().items()},
            folder / GATES,
        )
        config = MixtureConfig(
            base=mixture.base_name,
            revision=mixture.revision,
            experts=[_record(expert, copied=experts == "copy") for expert in mixture.experts],
            gate=mixture.gate_config,
            gate_sha256=_sha256(folder / GATES),
            prompting=mixture.prompting,
            versions={
                package: version(package)
                for package in ("loramix", "torch", "transformers", "peft")
            },
        )
        (folder / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
        for expert, record in zip(mixture.experts, config.experts, strict=True):
            if record.folder is not None:
                copy = folder / record.folder
                copy.mkdir(parents=True)
                for file in ADAPTER_FILES:
                    shutil.copyfile(expert.folder / file, copy / file)
        write_card(folder)


def load(
    path: str | Path,
    base: "str | Path | PreTrainedModel | None" = None,
    *,
    revision: str | None = None,
    dtype: str = "float32",
) -> MixtureModel:
    """Read a mixture from a folder or Hub id; a base that is not loaded yet is, as
    `loramix.bases.loading.load_base` does it.

    Raises CheckpointError if a file is missing or changed, or if a newer loramix wrote it.
    """
    folder = local_folder(path, revision=revision)
    config = read_config(folder)
    _check_file(folder / GATES, config.gate_sha256)
    experts = [_expert(folder, record) for record in config.experts]
    model, base_revision = _base(config, base, dtype)
    mixture = MixtureModel(
        model,
        experts,
        config.gate,
        base_name=config.base,
        revision=base_revision,
        prompting=config.prompting,
    )
    mixture.load_gate_state(load_file(folder / GATES))
    return mixture.eval()


def read_config(folder: Path) -> MixtureConfig:
    """Read and check `mixture_config.json`."""
    file, upgrade = folder / CONFIG, "pip install --upgrade loramix"
    if not file.is_file():
        raise CheckpointError(f"{folder} is no mixture: it holds no {CONFIG}")
    try:
        content = json.loads(file.read_bytes())
        found = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(found, int) and found > SCHEMA:
            raise CheckpointError(
                f"{file} has schema version {found}, but loramix {version('loramix')} reads up to "
                f"{SCHEMA}; {upgrade}"
            )
        return MixtureConfig.model_validate(content)
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{file} is damaged: it does not describe a mixture of schema {SCHEMA}\n{error}"
        ) from error


def local_folder(path: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of a mixture, fetched from the Hub if `path` is no folder."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(str(path), revision=revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is neither a folder nor a reachable Hub id ({error})"
        ) from error


def _record(expert: Expert, *, copied: bool) -> ExpertRecord:
    folder = quote(expert.name, safe=" ").replace(
        "..", "%2E%2E"
    )  # a name may hold what a path must not
    return ExpertRecord(
        name=expert.name,
        source=expert.source,
        revision=expert.revision,
        folder=f"{_EXPERTS}/{folder}" if copied else None,
        sha256={file: _sha256(expert.folder / file) for file in ADAPTER_FILES},
        lossy=expert.lossy,
    )


def _expert(folder: Path, record: ExpertRecord) -> Expert:
    source = record.source if record.folder is None else folder / record.folder
    expert = load_expert(
        record.name,
        source,
        revision=record.revision if record.folder is None else None,
        lossy=record.lossy,
    )
    for file, digest in record.sha256.items():
        _check_file(expert.folder / file, digest)
    return replace(expert, source=record.source, revision=record.revision)


def _check_file(file: Path, digest: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    if _sha256(file) != digest:
        raise CheckpointError(
            f"{file} is not the file that was saved with this mixture: its SHA-256 differs"
        )


def _base(
    config: MixtureConfig, base: "str | Path | PreTrainedModel | None", dtype: str
) -> "tuple[PreTrainedModel, str | None]":
    from loramix.bases.loading import load_base

    if base is not None and not isinstance(base, str | Path):
        return base, None
    name, revision = (config.base, config.revision) if base is None else (str(base), None)
    loaded = load_base(name, revision=revision, dtype=dtype)
    return loaded.model, loaded.revision


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
