"""A mixture from checkpoints of the reference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from loramix.config import GateConfig
from loramix.mixture.model import MixtureModel
from loramix.storage import loralib

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def import_mixture(
    base: "str | Path | PreTrainedModel",
    experts: Mapping[str, str | Path],
    gates: str | Path,
    path: str | Path,
    *,
    alpha: float = 1.0,
) -> None:
    """Write a mixture with the reference gate to folder `path`.

    experts: a file with loralib's matrices for every expert, in the order of the gates' outputs.
    gates: a file with the parameters of the gates; may be one of a whole model, of which the rest
        is not read.
    alpha: loralib's `lora_alpha`, which its files do not hold: updates are scaled by alpha / rank.

    Raises ExpertError or CheckpointError if a file is no such checkpoint.
    """
    with TemporaryDirectory() as folder:
        folders = {}
        for index, (name, file) in enumerate(experts.items()):
            folders[name] = Path(folder) / str(index)
            loralib.write_adapter(name, Path(file), folders[name], alpha=alpha)
        state = loralib.read_gates(Path(gates), len(experts))
        hidden = next(value.shape[0] for key, value in state.items() if key.endswith("lift.weight"))
        config = GateConfig.reference().model_copy(update={"hidden": hidden})
        mixture = MixtureModel.from_experts(base, folders, gate=config)
        mixture.experts = tuple(
            replace(expert, source=str(file))
            for expert, file in zip(mixture.experts, experts.values(), strict=True)
        )
        own = mixture.gate_state()
        priors = {key: value for key, value in own.items() if key.endswith(".prior")}
        mixture.load_gate_state({**state, **priors})
        mixture.save_pretrained(path)
