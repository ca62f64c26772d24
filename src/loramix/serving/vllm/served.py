"""What is served, told to those parts of vLLM that can be handed a name and nothing else.

vLLM loads its checks of requests and its HTTP middleware by their names, in several processes. So
the name holds what they must know.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from loramix.storage.manifest import read_config

_MARK = "of_"


@dataclass(frozen=True)
class Served:
    """A mixture's folder, and its name in the API."""

    folder: str
    name: str

    @property
    def as_attribute(self) -> str:
        """Return this as the name of an attribute."""
        return _MARK + json.dumps(asdict(self)).encode().hex()

    @classmethod
    def from_attribute(cls, attribute: str) -> "Served":
        """Return what an attribute's name holds; raises AttributeError if it is any other."""
        if not attribute.startswith(_MARK):
            raise AttributeError(attribute)
        return cls(**json.loads(bytes.fromhex(attribute.removeprefix(_MARK))))

    @cached_property
    def experts(self) -> list[str]:
        """The experts' names."""
        return [record.name for record in read_config(Path(self.folder)).experts]

    @property
    def models(self) -> dict[str, dict[str, float] | None]:
        """The names in the API, the mixture's first, and their weights; None: the gates decide."""
        alone = {f"{self.name}:{expert}": {expert: 1.0} for expert in self.experts}
        return {self.name: None, f"{self.name}:base": {}, **alone}
