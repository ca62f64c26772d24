"""vLLM's own model classes, each with a mixture in the place of its linear layers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from vllm import ModelRegistry

from loramix.errors import MixtureError
from loramix.serving.vllm import PREFIX
from loramix.serving.vllm.deciding import Held, Reader
from loramix.serving.vllm.installing import Installation
from loramix.serving.vllm.passes import Slots
from loramix.serving.vllm.refusals import refuse_settings
from loramix.serving.vllm.settings import refuse_mixture
from loramix.storage.files import sha256
from loramix.storage.manifest import CONFIG, read_config

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def mixed(own: type[nn.Module]) -> type[nn.Module]:
    """Return a class of vLLM's models whose layers become a mixture's when weights are loaded."""

    class Mixed(own):  # type: ignore[misc, valid-type]
        loramix_ready = False
        loramix_held: Held
        loramix_last: Reader | None = None  # with first_pass
        loramix_slots: Slots

        def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
            folder = _folder(vllm_config)
            config = read_config(folder)
            refuse_mixture(config, encoder_decoder=False)
            refuse_settings(vllm_config, config.gate)
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.loramix_slots = Slots([record.name for record in config.experts])
            self._installation = Installation(self, folder, vllm_config)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            """Load the base's weights, then put the mixture in; returns the names of all."""
            expected = {name for name, _ in self.named_parameters()}
            loaded = super().load_weights(self._installation.watch(weights))
            missing = expected - set(loaded if loaded is not None else expected)
            self.loramix_held = self._installation.finish()
            self.loramix_last = self._installation.last
            self.loramix_ready = True
            del self._installation
            # those of replaced modules have other names now
            return {name for name, _ in self.named_parameters()} - missing

    Mixed.__name__ = Mixed.__qualname__ = PREFIX + own.__name__
    return Mixed


def _folder(config: "VllmConfig") -> Path:
    """Return the mixture's folder, which `--hf-overrides` names."""
    base: Any = config.model_config.hf_config
    folder, digest = getattr(base, "loramix", None), getattr(base, "loramix_sha256", None)
    if folder is None or digest is None:
        raise MixtureError(
            "vLLM was not told which mixture to serve (hf_overrides: loramix, loramix_sha256); "
            "start it by `loramix serve MIXTURE --engine vllm`"
        )
    if sha256(Path(folder) / CONFIG) != digest:
        raise MixtureError(f"the mixture in {folder} has changed since vLLM was started")
    return Path(folder)


def __getattr__(name: str) -> type[nn.Module]:
    """Make the class of an architecture `Loramix<X>`."""
    if not name.startswith(PREFIX):
        raise AttributeError(name)
    own = ModelRegistry._try_load_model_cls(name.removeprefix(PREFIX))
    if own is None:
        raise AttributeError(f"vLLM cannot load {name.removeprefix(PREFIX)}")
    globals()[name] = made = mixed(own)
    return made
