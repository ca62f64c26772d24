"""A mixture on disk and on the Hub: written whole or not at all, without pickle.

my-mixture/
  README.md               model card, see `loramix.storage.card`
  mixture_config.json     schema version, base and revision, ordered experts, gate, prompts,
                          versions
  gate.safetensors        parameters of the gates, nothing else
  prototypes.safetensors  what the gates remember of their experts' prompts, if they do
  experts/<name>/         PEFT adapters, each loads alone with PeftModel.from_pretrained; absent
                          where the configuration only refers to them
  recipe.yaml             these two: of the run that made it, if one did
  metrics.json
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramix.config import GateConfig, Prompting
from loramix.errors import CheckpointError, HubError, LoramixError
from loramix.storage.adapter_config import ADAPTER_CONFIG
from loramix.storage.adapter_files import ADAPTER_WEIGHTS, read_tensors
from loramix.storage.card import write_card
from loramix.storage.experts import LOADED, Expert, load_expert
from loramix.storage.files import atomic_folder, check_replaceable, path_part, sha256
from loramix.storage.hub import find, first_line
from loramix.storage.inside import check_digest, check_inside, files_inside
from loramix.storage.locks import writing
from loramix.storage.manifest import CONFIG, ExpertRecord, MixtureConfig, read_config
from loramix.storage.replacing import restore

_PATIENCE = 30.0  # seconds that a save waits for another one to the same folder
_READS = 5  # of a folder that is replaced while it is read
GATES, _PROTOTYPES, _EXPERTS = "gate.safetensors", "prototypes.safetensors", "experts"


@dataclass(frozen=True)
class Parts:
    """The parts of a mixture: all of it but the base, which is only named.

    revision: the commit of a base from the Hub.
    gate_state: the parameters of the gates, by layer and parameter name.
    prototypes: see `loramix.mixture.means`; None where there are none.
    """

    base: str
    revision: str | None
    experts: tuple[Expert, ...]
    gate: GateConfig
    gate_state: Mapping[str, Tensor]
    prompting: Prompting
    prototypes: Mapping[str, Tensor] | None = None


def save(parts: Parts, path: Path, *, experts: Literal["copy", "reference"] = "copy") -> None:
    """Write a mixture to folder `path`, replacing an older one; an interrupted save leaves `path`
    as it was.

    experts: whether their files are copied, or read again from their sources.
    """
    nowhere = [expert.name for expert in parts.experts if expert.source == LOADED]
    if nowhere and experts == "reference":
        raise CheckpointError(
            f"the experts {', '.join(nowhere)} come from {LOADED}, which cannot be referred to; "
            "save with experts='copy'"
        )
    with writing(path, seconds=_PATIENCE), _replacing(path) as folder:
        _save_tensors(parts.gate_state, folder / GATES)
        if parts.prototypes is not None:
            _save_tensors(parts.prototypes, folder / _PROTOTYPES)
        copied = experts == "copy"
        records = [_record(expert, folder, copied=copied) for expert in parts.experts]
        packages = ("loramix", "torch", "transformers", "peft")
        config = MixtureConfig(
            base=parts.base,
            revision=parts.revision,
            experts=records,
            gate=parts.gate,
            gate_sha256=sha256(folder / GATES),
            prototypes_sha256=sha256(folder / _PROTOTYPES) if parts.prototypes else None,
            prompting=parts.prompting,
            versions={package: version(package) for package in packages},
        )
        (folder / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
        write_card(folder)


def load(path: str | Path, *, revision: str | None = None) -> Parts:
    """Read the parts of the mixture in a folder, or of a Hub id at `revision`.

    Raises CheckpointError if a file is missing or changed, or if a newer loramix wrote it.
    """
    folder = _folder(path, revision)
    for _ in range(_READS - 1):
        began = _identity(folder)
        try:
            return _read(folder)
        except (LoramixError, OSError):
            if _identity(folder) == began:
                raise
            # another save has replaced it meanwhile, and what was read is of both
    return _read(folder)


def _identity(folder: Path) -> int | None:
    """Return which folder it is that stands there now."""
    restore(folder)
    return folder.stat().st_ino if folder.is_dir() else None


def _read(folder: Path) -> Parts:
    """Read the parts of the mixture in a folder."""
    check_inside(folder / CONFIG, folder)
    config = read_config(folder)
    remembered = None
    if config.prototypes_sha256 is not None:
        remembered = _load_tensors(folder, _PROTOTYPES, config.prototypes_sha256)
    return Parts(
        base=config.base,
        revision=config.revision,
        experts=tuple(_expert(folder, record) for record in config.experts),
        gate=config.gate,
        gate_state=_load_tensors(folder, GATES, config.gate_sha256),
        prompting=config.prompting,
        prototypes=remembered,
    )


def push(
    folder: Path, repository: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Upload the mixture in `folder` to a repository of the Hub, made if needed, and return the
    commit's address.
    """
    from huggingface_hub import HfApi

    read_config(folder)
    for _ in files_inside(folder):
        pass  # what is private beside the mixture must not be uploaded with it
    api = HfApi(token=token)
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload mixture"
        )
    except (OSError, ValueError) as error:  # no connection, a refusal; a bad name, a bad card
        raise CheckpointError(f"the mixture was not uploaded to '{repository}': {error}") from error
    return str(commit.commit_url)


def pull(repository: str, folder: Path, *, revision: str | None = None) -> None:
    """Write a copy of a mixture on the Hub to `folder`, whole or not at all."""
    snapshot = _folder(repository, revision)
    read_config(snapshot)
    with writing(folder, seconds=_PATIENCE), _replacing(folder) as copy:
        for file in files_inside(snapshot):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / file, copy / file)  # follows the links of the cache


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a folder to fill that replaces an older mixture at `path`, and nothing else."""
    check_replaceable(path, CONFIG)
    with atomic_folder(path) as folder:
        yield folder


def _save_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)


def _folder(path: str | Path, revision: str | None) -> Path:
    try:
        return find(path, revision=revision).folder
    except HubError as error:
        raise CheckpointError(f"there is no mixture '{path}': it is {error}") from error


def _record(expert: Expert, root: Path, *, copied: bool) -> ExpertRecord:
    """Copy the expert into the mixture's folder, unless it is only referred to, and describe it."""
    inner = f"{_EXPERTS}/{path_part(expert.name)}"
    files = _copy(expert, root / inner) if copied else (expert.config_file, expert.weights_file)
    return ExpertRecord(
        name=expert.name,
        source=expert.source,
        revision=expert.revision,
        folder=inner if copied else None,
        sha256={file.name: sha256(file) for file in files},
        lossy=expert.lossy,
    )


def _copy(expert: Expert, folder: Path) -> tuple[Path, Path]:
    """Copy an adapter to a new folder; a pickled one becomes safetensors there."""
    folder.mkdir(parents=True)
    config, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    shutil.copyfile(expert.config_file, config)
    if expert.weights_file.suffix == weights.suffix:
        shutil.copyfile(expert.weights_file, weights)
    else:
        state = read_tensors(expert.name, expert.weights_file)
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, weights)
    return config, weights


def _expert(folder: Path, record: ExpertRecord) -> Expert:
    """Read one expert of the mixture in `folder`, from its copy there or from its source."""
    own = record.folder is not None
    source = folder / record.folder if record.folder is not None else record.source

    def check(file: Path) -> None:
        if file.name not in record.sha256:
            raise CheckpointError(f"{folder / CONFIG} holds no SHA-256 of {file}")
        check_digest(file, record.sha256[file.name], folder if own else None)

    if own:
        for name in record.sha256:
            check(folder / str(record.folder) / name)
    revision = None if own else record.revision
    expert = load_expert(record.name, source, revision=revision, lossy=record.lossy, check=check)
    return replace(expert, source=record.source, revision=record.revision)


def _load_tensors(folder: Path, name: str, digest: str) -> dict[str, Tensor]:
    """Read a file of a mixture's own tensors; CheckpointError if they are none, or no numbers."""
    file = folder / name
    check_digest(file, digest, folder)
    try:
        state = dict(load_file(file))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{file}: '{key}' holds NaN or inf; save the mixture again")
    return state
