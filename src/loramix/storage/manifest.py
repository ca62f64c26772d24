"""`mixture_config.json`: what a saved mixture is made of."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from loramix.config import GateConfig, Prompting
from loramix.errors import CheckpointError

SCHEMA: Literal[2] = 2  # 2 may have prototypes
CONFIG = "mixture_config.json"


class ExpertRecord(BaseModel):
    """One expert: its source, the SHA-256 of its files, and the parts of it that were left out.

    folder: the place of its copy, relative to the mixture; None where it is read from `source` at
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

    schema_version: Literal[1, 2] = SCHEMA
    base: str
    revision: str | None
    experts: list[ExpertRecord]
    gate: GateConfig
    gate_sha256: str
    prototypes_sha256: str | None = None
    prompting: Prompting = Prompting()
    versions: dict[str, str]


def read_config(folder: Path) -> MixtureConfig:
    """Read and check the configuration of the mixture in `folder`.

    Raises CheckpointError if there is none, or if it is damaged or from a newer loramix.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} is no mixture: it holds no {CONFIG}")
    try:
        content = json.loads(file.read_bytes())
        found = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(found, int) and found > SCHEMA:
            raise CheckpointError(
                f"{file} has schema version {found}, but loramix {version('loramix')} reads up to "
                f"{SCHEMA}; pip install --upgrade loramix"
            )
        return MixtureConfig.model_validate(content)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is damaged: it does not describe a mixture of schema {SCHEMA}\n{error}"
        ) from error
