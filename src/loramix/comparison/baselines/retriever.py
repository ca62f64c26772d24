"""Retriever: a sentence encoder picks, for every prompt, the one expert whose prompts are nearest.

The encoder is that of BERTScore, mean-pooled; an expert's place is the mean embedding of the
prompts that gates are trained on, in the task's wording and as inputs alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loramix.bases.loading import Base, encoder_path
from loramix.comparison.baselines.baseline import Baseline
from loramix.config import GateConfig
from loramix.data.leaks import RECORD, record
from loramix.data.tokens.batches import IGNORED
from loramix.experiment.graph import Settings
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.mixture.model import MixtureModel
from loramix.storage.files import atomic_file

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

FILE = "prototypes.safetensors"  # (D,) by expert
LABEL = "retriever"
_BATCH = 32  # texts that are embedded at once


class Encoder:
    """A sentence encoder: the mean of the last layer's token embeddings, at length 1."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = encoder_path(name)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str], label: str | None = None) -> Float[Tensor, "N D"]:
        """Return the embedding of every text; what is beyond the encoder's positions is cut."""
        limit = self._model.config.max_position_embeddings
        rows = []
        for first in track(range(0, len(texts), _BATCH), label):
            batch = self._tokenizer(
                list(texts[first : first + _BATCH]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            hidden_BTD = self._model(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            rows.append((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


class Retriever(MixtureModel):
    """A mixture that gives every prompt to one expert, that of the nearest prototype."""

    encoder: Encoder
    texts: PreTrainedTokenizerBase
    prototypes_ED: Tensor

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        **inputs: object,
    ) -> "ModelOutput":
        """Return the base model's output, every row with its expert."""
        prompt_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if labels is not None and not self.config.is_encoder_decoder:
            before = prompt_BT.shape[1] - labels.shape[1]  # labels may cover the last columns alone
            answer_BT = torch.nn.functional.pad(labels != IGNORED, (before, 0))
            prompt_BT = prompt_BT * ~answer_BT
        chosen = self._chosen(input_ids, prompt_BT.bool())
        return super().forward(input_ids, attention_mask, labels, weights=chosen, **inputs)  # type: ignore[arg-type]

    def generate(self, **inputs: object) -> "Tensor | ModelOutput":  # type: ignore[override]
        """Return what the base model's `generate` returns, every row with its expert."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert isinstance(ids, Tensor)
        assert isinstance(mask, Tensor)
        chosen = self._chosen(ids, mask.bool())
        return super().generate(weights=chosen, **inputs)  # type: ignore[arg-type]

    def _chosen(
        self, ids_BT: Int[Tensor, "B T"], prompt_BT: Bool[Tensor, "B T"]
    ) -> list[dict[str, float]]:
        """Return weight 1 for the nearest expert of every row's prompt."""
        prompts = [
            self.texts.decode(ids[kept].tolist(), skip_special_tokens=True)
            for ids, kept in zip(ids_BT, prompt_BT, strict=True)
        ]
        nearest_B = (self.encoder.embed(prompts) @ self.prototypes_ED.T).argmax(1)
        return [{self.expert_names[index]: 1.0} for index in nearest_B.tolist()]


def settings(recipe: Recipe) -> Settings:
    """Return the settings of the prototypes."""
    return {
        "gate": recipe.gate.model_dump(mode="json", include={"train_samples"}),
        **recipe.model_dump(mode="json", include={"evaluation"}),
    }


def fit(run: Run, folder: Path) -> None:
    """Write the mean embedding of every expert's prompts, and the record of their samples."""
    recipe, encoder = run.recipe, Encoder(run.recipe.evaluation.encoder)
    parts = run.training_samples(recipe.gate, recipe.routed)["train"]
    texts: dict[str, list[str]] = {}
    for task, samples in zip(recipe.routed, parts, strict=True):
        of_expert = texts.setdefault(recipe.own_experts[task.name], [])
        for sample in samples:
            of_expert += [task.render(sample.input), sample.input]
    prototypes = {
        name: encoder.embed(each, f"{LABEL}: prompts of {name}").mean(0)
        for name, each in texts.items()
    }
    with atomic_file(folder / FILE) as file:
        save_file(prototypes, file)
    record(folder / RECORD, [sample for part in parts for sample in part])


@contextmanager
def load(run: Run, folder: Path, base: Base) -> Iterator[MixtureModel]:
    """Yield the run's experts behind the retriever."""
    recipe = run.recipe
    model = Retriever(
        base.model, run.experts(), GateConfig(), base_name=base.name, revision=base.revision
    )
    model.encoder, model.texts = Encoder(recipe.evaluation.encoder), base.tokenizer
    prototypes = load_file(folder / FILE)
    # an expert that no task asks for has no prompts, and is never the nearest
    width = len(next(iter(prototypes.values())))
    rows = [prototypes.get(name, torch.zeros(width)) for name in recipe.expert_names]
    model.prototypes_ED = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    yield model


BASELINE = Baseline(
    LABEL,
    "the retriever, which picks one expert for each prompt",
    paper="after Zhao et al. 2024, arXiv:2402.09997",
    load=load,
    fit=fit,
    leaves=(FILE, RECORD),
    settings=settings,
)
