"""Several LoRA adapters as one language model that decides, for every input, how much of each
adapter to use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loramix.assembly.fit import fit
    from loramix.config import GateConfig
    from loramix.mixture.model import MixtureModel

__all__ = ["GateConfig", "MixtureModel", "__version__", "fit"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the public classes on first use, so that importing loramix does not import torch."""
    if name == "MixtureModel":
        from loramix.mixture.model import MixtureModel

        return MixtureModel
    if name == "GateConfig":
        from loramix.config import GateConfig

        return GateConfig
    if name == "fit":
        from loramix.assembly.fit import fit

        return fit
    raise AttributeError(f"module 'loramix' has no attribute {name!r}")
