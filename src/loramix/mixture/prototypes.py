"""Prototypes: gates that know their experts from a few prompts each; the language model learns
nothing for it.

What the gates read of each expert's prompts is averaged and written into their perceptrons as a
rule, see `loramix.mixture.means`, which is moved where it confuses these prompts, see
`loramix.mixture.separation`, and which training can refine. The means are kept with the mixture, so
that an expert can be added later without the prompts of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.errors import MixtureError, did_you_mean
from loramix.mixture.gate import Evidence
from loramix.mixture.groups import block_of, in_decoder
from loramix.mixture.means import (
    RANK,
    Prototypes,
    main_directions,
    scatter_of,
    without_effect,
    write_newcomer,
    write_rule,
)
from loramix.mixture.model import MixtureModel
from loramix.mixture.problems import Init, gate_problems
from loramix.mixture.queries import learn_queries, query_steps
from loramix.mixture.readings import KEPT_BYTES, Examples, contexts_of
from loramix.mixture.separation import can_separate, separate

# Of gates that decide alone or are moved, and of those that carry evidence on, which adds up within
# a block.
SHARPNESS, CARRIED = 12.0, 4.0
# Training starts at this sharpness: gates that are sure get no gradients, and cannot learn to mix.
SOFT = 4.0


@torch.no_grad()
def from_examples(
    mixture: MixtureModel,
    examples: Mapping[str, Examples],
    *,
    sharpness: float | None = None,
    discount: bool = True,
    separated: bool = True,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Set every gate to prefer the expert whose examples its context is most like.

    The queries of attention pooling are learned first, see `loramix.mixture.queries`.

    examples: for every expert some prompts, as texts or as the model's inputs (a few suffice).
    sharpness: how far, in nats, the score of an expert's own mean context lies above another's, on
        average and in one gate; None: what has proved itself for such gates.
    discount: whether directions in which the examples of one expert differ count less.
    separated: whether prompt gates are moved where nearest means confuse the examples; by a part of
        these where their contexts would take more than 1 GiB.
    each: called `start_steps` times, for a display of progress.

    Raises MixtureError if an expert has no examples, or if a gate has fewer hidden units than
    experts.
    """
    names = mixture.expert_names
    for name in examples:
        if name not in names:
            raise MixtureError(f"examples: there is no expert '{name}'{did_you_mean(name, names)}")
    missing = [name for name in names if not examples.get(name)]
    if missing:
        raise MixtureError(
            f"examples: there are none for {', '.join(missing)}; every expert needs some"
        )
    check_start(mixture, "prototype")
    if sharpness is None:
        sharpness = CARRIED if mixture.gate_config.carry else SHARPNESS
    learn_queries(mixture, examples, each)
    kept = _held(mixture) if separated and can_separate(mixture.gate_config) else 0
    seen = [_seen(mixture, index, examples[name], each, kept) for index, name in enumerate(names)]
    layers = seen[0].means.keys()
    mixture.prototypes = Prototypes(
        {layer: torch.stack([one.means[layer] for one in seen]) for layer in layers},
        {layer: _scatter(seen, layer)[: None if discount else 0] for layer in layers},
        torch.tensor([one.prompts for one in seen]),
        sharpness,
    )
    for reader, gate in mixture.gates.items():
        place, held = gate.prior.device, mixture.prototypes
        means_ED, scatter_RD = held.means[reader].to(place), held.scatters[reader].to(place)
        write_rule(gate, means_ED, scatter_RD, sharpness)
        if kept:
            separate(gate, [one.contexts[reader] for one in seen])


def start_steps(mixture: MixtureModel, examples: Mapping[str, Examples]) -> int:
    """Return in how many steps gates are set from these examples: those of queries, and one for
    each example.
    """
    return query_steps(mixture, examples) + sum(map(len, examples.values()))


@torch.no_grad()
def soften(mixture: MixtureModel) -> None:
    """Scale the scores of gates that follow prototypes, for training to start from."""
    assert mixture.prototypes is not None
    part = min(1.0, SOFT / mixture.prototypes.sharpness)
    for gate in mixture.gates.values():
        for scaled in (gate.lift.weight, gate.lift.bias, gate.score.bias):
            scaled *= part


@torch.no_grad()
def add_expert(
    mixture: MixtureModel,
    name: str,
    source: str | Path,
    examples: Examples,
    *,
    lossy: Sequence[str] = (),
) -> None:
    """Add a PEFT adapter as the last expert, which gets prompts like `examples` at once.

    The others keep theirs: their scores stay as they are, and the newcomer's threshold lies between
    its examples and what the mixture remembers of the others' prompts.

    Raises MixtureError if the mixture remembers none, or if the expert adapts layers for which it
    does not; nothing is changed then.
    """
    remembered = mixture.prototypes
    if not examples:
        raise MixtureError(f"examples: there are none for the new expert '{name}'; it needs some")
    if remembered is None or not bool(remembered.counts.all()):
        raise MixtureError(
            "this mixture does not remember the prompts of its experts, against which a new one "
            "could be told: set its gates with from_examples first, or build the mixture anew with "
            "examples of every expert"
        )
    hidden = mixture.gate_config.hidden
    crowded = any(not without_effect(gate) for gate in mixture.gates.values())
    mixture.add_expert(name, source, lossy=lossy, hidden=hidden + crowded)
    try:
        grown = _with_newcomer(mixture, remembered, examples)
    except BaseException:
        mixture.remove_expert(name, hidden=hidden)
        mixture.prototypes = remembered
        raise
    for reader, gate in mixture.gates.items():
        place = gate.prior.device
        means_ED, scatter_RD = grown.means[reader].to(place), grown.scatters[reader].to(place)
        if len(without_effect(gate)) == gate.config.hidden:  # no old expert acts here
            write_rule(gate, means_ED, scatter_RD, grown.sharpness)
        else:
            write_newcomer(gate, means_ED, scatter_RD, grown.sharpness)
    mixture.prototypes = grown


@torch.no_grad()
def remembered_weights(mixture: MixtureModel) -> dict[str, float]:
    """Return the weight that every expert gets at its own remembered prompts, the mean over gates;
    without those of which nothing is remembered.
    """
    if (held := mixture.prototypes) is None:
        return {}
    known = [index for index, count in enumerate(held.counts.tolist()) if count]
    evidence = {side: Evidence() for side in (False, True)}  # of an encoder, and of a decoder
    found = {}
    for reader, gate in mixture.gates.items():
        means_1ED = held.means[reader].to(gate.prior.device)[None]
        mask = torch.ones(means_1ED.shape[:2], dtype=torch.bool, device=means_1ED.device)
        side, together = in_decoder(mixture.base, reader), gate.config.first_pass
        before = evidence[side] if gate.config.carry or together else None
        if before is not None:
            before.blocks = block_of(reader) + 1
        # where gates decide together, the last of a side has heard all others
        found[side if together else reader] = gate(means_1ED, mask, before)[0].diagonal().cpu()
    means = torch.stack(list(found.values())).mean(0).tolist()
    return {mixture.expert_names[index]: means[index] for index in known}


def check_start(mixture: MixtureModel, init: Init) -> None:
    """Raise MixtureError if the gates of this mixture cannot start like this."""
    found = gate_problems(
        mixture.gate_config,
        experts=len(mixture.experts),
        init=init,
        encoder_decoder=any(in_decoder(mixture.base, reader) for reader in mixture.gates),
    )
    for setting, problem in found:
        raise MixtureError(f"{setting}: {problem}")


@dataclass(frozen=True)
class _Seen:
    """What layers read of one expert's prompts.

    means: (D,) by layer. variances: mean squared distances from them. differences: (R, D), the
        main directions of these, whose squared lengths are variances. contexts: (N, D) in float16,
        of the prompts or of an even part of them, for the layers with gates.
    """

    prompts: int
    means: Mapping[str, Float[Tensor, " _"]]
    variances: Mapping[str, float]
    differences: Mapping[str, Float[Tensor, "_ _"]]
    contexts: Mapping[str, Float[Tensor, "_ _"]]


def _held(mixture: MixtureModel) -> int:
    """Return how many contexts of each expert are held for separation."""
    of_one = sum(2 * gate.width for gate in mixture.gates.values())  # float16
    return max(1, KEPT_BYTES // (of_one * len(mixture.experts)))


def _seen(
    mixture: MixtureModel,
    expert: int,
    examples: Examples,
    each: Callable[[], object] = lambda: None,
    kept: int = 0,
) -> _Seen:
    """Return what every layer reads of an expert's prompts, while the gates choose this expert.

    kept: how many of their contexts are returned at most.
    """
    rows: dict[str, list[Tensor]] = {}
    for example in examples:
        inputs = mixture.text_inputs(example) if isinstance(example, str) else dict(example)
        with contexts_of(mixture, inputs, expert=expert) as contexts:
            mixture.weights(**inputs)
        for layer, context_BD in contexts.items():
            rows.setdefault(layer, []).append(context_BD.cpu())
        each()
    contexts_ND = {layer: torch.cat(parts) for layer, parts in rows.items()}
    means = {layer: all_ND.mean(0) for layer, all_ND in contexts_ND.items()}
    apart = {layer: all_ND - means[layer] for layer, all_ND in contexts_ND.items()}
    prompts = len(next(iter(contexts_ND.values())))
    held = torch.linspace(0, prompts - 1, min(prompts, kept)).round().long()
    return _Seen(
        prompts,
        means,
        {layer: float(ND.square().sum(1).mean()) for layer, ND in apart.items()},
        {layer: main_directions(ND / len(ND) ** 0.5, RANK) for layer, ND in apart.items()},
        {layer: contexts_ND[layer][held].half() for layer in mixture.gates},
    )


def _scatter(seen: Sequence[_Seen], layer: str) -> Float[Tensor, "R D"]:
    """Return how the contexts of one expert scatter in a layer, the mean over experts."""
    differences = torch.cat([one.differences[layer] for one in seen]) / len(seen) ** 0.5
    variance = fmean(one.variances[layer] for one in seen)
    return scatter_of(differences, variance, experts=len(seen))


def _with_newcomer(mixture: MixtureModel, old: Prototypes, examples: Examples) -> Prototypes:
    """Return the old prototypes with those of the last expert; MixtureError where layers lack
    some.
    """
    seen = _seen(mixture, len(mixture.experts) - 1, examples)
    lacking = sorted(mixture.gates.keys() - old.means.keys())
    if lacking:
        raise MixtureError(
            f"the new expert adapts '{lacking[0]}' and {len(lacking) - 1} more layers of which "
            "nothing is remembered, so the others' prompts cannot be told from its own there; "
            "build the mixture anew, with examples of every expert"
        )
    kept = [layer for layer in old.means if layer in seen.means]
    means = {each: torch.cat([old.means[each], seen.means[each][None]]) for each in kept}
    # How prompts scatter stays as it was, or the old experts' scores would change.
    scatters = {each: old.scatters[each] for each in kept}
    counts = torch.cat([old.counts, torch.tensor([seen.prompts])])
    return Prototypes(means, scatters, counts, old.sharpness)
