"""Given adapters: found, pinned, read, and held against the base before any work."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from loramix.bases import loading
from loramix.errors import LoramixError
from loramix.experiment.recipe import BaseSpec, ExpertSpec, Recipe
from loramix.mixture.fitting import fitted
from loramix.storage.adapter_files import AdapterFiles, find_adapter
from loramix.storage.experts import Expert, load_expert
from loramix.storage.files import sha256
from loramix.storage.hub import exists

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_given(name: str, spec: ExpertSpec) -> Expert:
    """Return a given adapter as it was saved, without the parts that are left out."""
    return load_expert(name, spec.place, revision=spec.revision, lossy=spec.lossy)


def digests(name: str, spec: ExpertSpec) -> dict[str, str]:
    """Return the SHA-256 of a given adapter's files, by the files' names."""
    files = _find(name, spec)
    return {file.name: sha256(file) for file in (files.config, files.weights)}


def pinned(name: str, spec: ExpertSpec, *, began: Mapping[str, str | None] | None) -> ExpertSpec:
    """Return the settings with the commit of an adapter from the Hub.

    began: the settings with which the same folder was begun, if there are any: where nothing names
        a revision, a run goes on with the commit that it began with.
    """
    source, named = spec.source, ""
    if not exists(source):
        source, _, named = source.partition("@")
    revision = spec.revision or named or None
    same = began is not None and (began["source"], began["subfolder"]) == (source, spec.subfolder)
    if began is not None and same and revision is None:
        revision = began["revision"]
    exact = spec.model_copy(update={"source": source, "revision": revision})
    return exact.model_copy(update={"revision": _find(name, exact).revision})


def given_problems(recipe: Recipe) -> Iterator[str]:
    """Yield why given adapters cannot be had, or cannot be mixed on the recipe's base.

    What needs the base's weights is left to the first steps of a run.
    """
    base = bare_base(recipe.base) if recipe.experts else None
    found: dict[str, Expert] = {}
    known: dict[str, str] = {}  # the names by the digest of the weights
    for name, spec in recipe.experts.items():
        try:
            expert = read_given(name, spec)
            if base is not None:
                on_bare(expert, base)
        except LoramixError as error:
            yield f"experts.{name}: {error}"
            continue
        found[name] = expert
        same = known.setdefault(sha256(expert.weights_file), name)
        if same != name:
            yield f"experts.{name}: it is the same adapter as '{same}'; leave one of them out"
    unequal = _unequal(recipe, found) if recipe.gate.mixing == "parameter" else None
    if unequal:
        yield f"gate.mixing: 'parameter' needs experts of one rank: {unequal}; use 'output'"


def unequal_ranks(recipe: Recipe) -> str | None:
    """Return the experts' ranks in words if they differ; None if all are the same."""
    given = {name: read_given(name, spec) for name, spec in recipe.experts.items()}
    return _unequal(recipe, given)


def given_layers(recipe: Recipe, base: "PreTrainedModel") -> set[str]:
    """Return the layers of a base, with or without its weights, that given adapters adapt."""
    layers: set[str] = set()
    for name, spec in recipe.experts.items():
        layers |= on_bare(read_given(name, spec), base).updates.keys()
    return layers


def bare_base(spec: BaseSpec) -> "PreTrainedModel | None":
    """Return the base without its weights, on the meta device; None if there is no such base."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        config = loading.load_config(spec.name, revision=spec.revision)
    except LoramixError:
        return None  # a missing base is a problem of its own
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def on_bare(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Return the expert with the names and on the layers of a base, all but what needs its
    weights.
    """
    return fitted(replace(expert, start=None, whole={}), base)


def _unequal(recipe: Recipe, given: Mapping[str, Expert]) -> str | None:
    ranks = {task.name: recipe.lora.rank for task in recipe.trained}
    ranks |= {name: _rank(expert) for name, expert in given.items()}
    words = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
    return words if len(set(ranks.values())) > 1 else None


def _rank(expert: Expert) -> int:
    """Return the rank that a given adapter has once a run has taken it over: in all layers that of
    its largest update.
    """
    ranks = []
    for update in expert.updates.values():
        (rank, width), height = update.down_RD.shape, update.up_OR.shape[0]
        # one that counts from changed weights of the base becomes one of twice the rank
        ranks.append(rank if expert.start is None else min(2 * rank, width, height))
    return max(ranks)


def _find(name: str, spec: ExpertSpec) -> AdapterFiles:
    return find_adapter(name, spec.place, revision=spec.revision)
