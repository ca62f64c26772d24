"""Parts of several baselines: one adapter on a base, experts at fixed weights, a search for
such weights, a merge by PEFT.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from loramix.bases.loading import Base
from loramix.config import GateConfig, Mixing
from loramix.data.leaks import RECORD, record
from loramix.experiment.answers import encode_all, mean_loss, target_losses
from loramix.experiment.run import MODELS, Run
from loramix.mixture.model import MixtureModel
from loramix.storage.adapter_config import settle
from loramix.storage.files import atomic_folder, write_csv, write_text

WEIGHTS, TRIED = "weights.json", "tried.csv"
SEARCH_LEAVES = (WEIGHTS, TRIED, RECORD)

Objective = Callable[[Sequence[float]], float]  # the loss at one weight for every expert


@contextmanager
def with_adapter(base: Base, folder: Path) -> Iterator[PeftModel]:
    """Yield the base with one adapter, in the base's number format, as a mixture computes with its
    experts.
    """
    yield PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False)


def untrained_mixture(run: Run, base: Base, gate: GateConfig) -> MixtureModel:
    """Return an untrained mixture of a run's experts."""
    return MixtureModel(
        base.model, run.experts(), gate, base_name=base.name, revision=base.revision
    )


@contextmanager
def at_weights(
    run: Run, base: Base, weights: Mapping[str, float], *, mixing: Mixing
) -> Iterator[MixtureModel]:
    """Yield the mixture of the run's experts at these weights."""
    mixture = untrained_mixture(run, base, GateConfig(mixing=mixing))
    with mixture.fixed(weights):
        yield mixture


def read_weights(folder: Path) -> dict[str, float]:
    """Return the weights that a search has left."""
    weights: dict[str, float] = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    return weights


def search_weights(
    run: Run,
    folder: Path,
    search: Callable[[Objective], list[list[float]]],
    *,
    mixing: Mixing,
) -> None:
    """Write the best weights of a search, all that were tried, and the record of the samples to
    `folder`.

    search: takes the mean validation loss of the tasks that have an expert, as a function of the
        weights, and returns rows of weights and their score, the lower the better.
    """
    recipe, base = run.recipe, run.load_base()
    mixture = untrained_mixture(run, base, GateConfig(mixing=mixing))
    names = recipe.expert_names
    samples = [
        run.manifest.of(task, "validation")[: recipe.comparison.search_samples]
        for task in recipe.routed
    ]
    encoded = []
    for task, part in zip(recipe.routed, samples, strict=True):
        asked = [(task, sample.input, sample.target) for sample in part]
        encoded.append(encode_all(mixture, base.tokenizer, recipe, asked))

    def loss(weights: Sequence[float]) -> float:
        with mixture.fixed(dict(zip(names, weights, strict=True))):
            size = recipe.generation.batch_size
            losses = [
                target_losses(mixture, base.tokenizer, part, batch_size=size) for part in encoded
            ]
        return sum(mean_loss(part) for part in losses) / len(losses)

    _write_search(folder, names, tried=search(loss))
    record(folder / RECORD, chain(*samples))


def _write_search(folder: Path, names: Sequence[str], *, tried: Sequence[Sequence[float]]) -> None:
    """Write all weights that were tried with their score, and those with the lowest."""
    rows = []
    for tried_row in tried:
        rows.append([round(value, 6) for value in tried_row])
    *best, _ = min(tried, key=lambda row: row[-1])
    write_csv(folder / TRIED, [*names, "loss"], rows)
    write_text(folder / WEIGHTS, json.dumps(dict(zip(names, best, strict=True)), indent=2))


def merge(run: Run, folder: Path, *, combination: str) -> None:
    """Write the run's experts, merged by PEFT into one adapter, to `folder`/models.

    The merges act on the experts' whole updates B A, not on the matrices one by one, and the result
    is cut back to an adapter of the experts' ranks together, or of the full rank of the smallest
    layer. Every expert has weight 1.
    """
    recipe, base = run.recipe, run.load_whole_base()
    names = recipe.expert_names
    # to PEFT, an adapter's name must hold no dot, and be no part of a layer's name
    adapters = {f"expert-{index}": run.adapter(name) for index, name in enumerate(names)}
    (first, folder_of_first), *others = adapters.items()
    model = PeftModel.from_pretrained(base.model, folder_of_first, adapter_name=first)
    for name, adapter in others:
        model.load_adapter(adapter, adapter_name=name)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # DARE drops at random
        model.add_weighted_adapter(
            list(adapters),
            [1.0] * len(adapters),
            "merged",
            combination_type=combination,
            density=recipe.comparison.density,
            svd_rank=_merged_rank(model),
        )
    with atomic_folder(folder / MODELS) as models:
        model.save_pretrained(models, selected_adapters=["merged"], save_embedding_layers=False)
        # PEFT puts an adapter of this name into a folder of this name
        for file in (models / "merged").iterdir():
            file.rename(models / file.name)
        (models / "merged").rmdir()
        settle(models)


def _merged_rank(model: PeftModel) -> int:
    """Return the ranks of all adapters of a model together, but no more than the least that an
    adapted layer can have.
    """
    ranks: int = sum(config.r for config in model.peft_config.values())
    limit = sys.maxsize
    for module in model.modules():
        if isinstance(module, LoraLayer):
            limit = min(limit, module.in_features, module.out_features)
    return min(ranks, limit)
