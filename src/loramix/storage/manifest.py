"""`mixture_config.json`: what a saved mixture is made of."""

from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramix.config import GateConfig, Prompting
from loramix.errors import CheckpointError
from loramix.storage.texts import read_json

# 2 may have prototypes; in 3 gates may carry evidence on, in 4 decide by a first pass, and in 5
# pool by attention
SCHEMA: Literal[5] = 5
CONFIG = "mixture_config.json"


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ExpertRecord(BaseModel):
    """One expert: its source, the SHA-256 of its files, and the parts of it that were left out.

    folder: the place of its copy, relative to the mixture; None where it is read from `source` at
        `revision`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    source: str
    revision: str | None
    folder: str | None
    sha256: dict[str, Digest] = Field(min_length=2)  # of its settings and its weights
    lossy: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _stays_inside(self) -> "ExpertRecord":
        place = PurePosixPath(self.folder or "")
        leads_out = place.is_absolute() or ".." in place.parts or "\0" in str(place)
        if self.folder is not None and (leads_out or not place.parts):
            raise ValueError(f"folder {self.folder!r} is no folder inside the mixture")
        for name in self.sha256:
            if PurePosixPath(name).name != name:
                raise ValueError(f"sha256 names {name!r}, which is no name of a file")
        return self


class MixtureConfig(BaseModel):
    """The contents of `mixture_config.json`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1, 2, 3, 4, 5] = SCHEMA
    base: str
    revision: str | None
    experts: list[ExpertRecord]
    gate: GateConfig
    gate_sha256: Digest
    prototypes_sha256: Digest | None = None
    prompting: Prompting = Prompting()
    versions: dict[str, str]

    @model_validator(mode="after")
    def _names_differ(self) -> "MixtureConfig":
        names = [expert.name for expert in self.experts]
        if len(set(names)) < len(names):
            raise ValueError(f"two experts have one name, of {names}")
        if not names:
            raise ValueError("there are no experts")
        return self


def read_config(folder: Path) -> MixtureConfig:
    """Read and check the configuration of the mixture in `folder`.

    Raises CheckpointError if there is none, or if it is damaged or from a newer loramix.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} is no mixture: it holds no {CONFIG}")
    try:
        content = read_json(file)
        found = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(found, int) and found > SCHEMA:
            raise CheckpointError(
                f"{file} has schema version {found}, but loramix {version('loramix')} reads up to "
                f"{SCHEMA}; pip install --upgrade loramix"
            )
        return MixtureConfig.model_validate(content)
    except ValueError as error:
        raise CheckpointError(
            f"{file} is damaged: it does not describe a mixture of schema {SCHEMA}\n{error}"
        ) from error
