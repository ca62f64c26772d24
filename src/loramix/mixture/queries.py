"""Queries of attention pooling, learned from a few prompts of each expert.

A good query attends to the tokens by which the prompts of one expert are told from those of others,
whatever text they are about. So the prompts are divided into halves by chance, again at every step,
and with m_e the mean of what is attended to in one half of an expert's prompts, c in the other,

    loss = -log softmax_e(-SHARPNESS |c - m_e|² / s) + PULL |q|²

s being the mean squared distance between two experts' means. These are the episodes of prototypical
networks (Snell et al. 2017, arXiv:1703.05175). They need no answers, and no gradient in the base.

Axes: `T` tokens of all prompts, `N` prompts, `D` width, `E` experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loramix.mixture.model import MixtureModel
from loramix.mixture.pooling import AttentionPooling, unit_scale
from loramix.mixture.readings import KEPT_BYTES, Examples, Prompts, contexts_of, tokens_of

_STEPS, _RATE = 30, 0.1  # of Adam; a step moves each of D weights by the rate over their root
_SHARPNESS, _PULL = 6.0, 1e-2
_MOST, _MOST_OF_ONE, _FEWEST_OF_ONE = 256, 48, 4  # prompts


def held_prompts(experts: int) -> int:
    """Return how many prompts of each expert queries are learned from, at most."""
    return max(_FEWEST_OF_ONE, min(_MOST_OF_ONE, _MOST // experts))


def learn_queries(
    mixture: MixtureModel,
    examples: Mapping[str, Examples],
    each: Callable[[], object] = lambda: None,
) -> None:
    """Learn the query of every gate that has one, from a part of every expert's examples.

    As many gates at a time as their prompts' tokens have room for, see `KEPT_BYTES`. A single
    prompt of an expert has no two halves: all tokens are then attended to alike.
    each: called `query_steps` times, for a display of progress.
    """
    poolings = _poolings(mixture)
    chosen = _all_chosen(mixture, examples) if poolings else []
    if _single(chosen):
        for pooling in poolings.values():
            nn.init.zeros_(pooling.query)
            each()
        return
    for part in _parts(poolings, chosen):
        learned: dict[int, Tensor] = {}  # by the prompts' tokens, which gates may share
        for reader, prompts in _read(mixture, part, chosen, each).items():
            place = id(prompts[0][0])
            query_D = poolings[reader].query
            if place not in learned:
                learned[place] = learn_query(prompts, query_D.device)
            with torch.no_grad():
                query_D.copy_(learned[place])
            each()


def query_steps(mixture: MixtureModel, examples: Mapping[str, Examples]) -> int:
    """Return in how many steps queries are learned from these examples: one for each, and one for
    every batch of prompts that is read.
    """
    poolings = _poolings(mixture)
    chosen = _all_chosen(mixture, examples) if poolings else []
    passes = 0 if _single(chosen) else len(list(_parts(poolings, chosen)))
    return len(poolings) + passes * sum(map(len, chosen))


def _poolings(mixture: MixtureModel) -> dict[str, AttentionPooling]:
    gates = mixture.gates.items()
    return {reader: gate.pooling for reader, gate in gates if gate.pooling is not None}


def _all_chosen(
    mixture: MixtureModel, examples: Mapping[str, Examples]
) -> list[list[dict[str, Tensor]]]:
    """Return what queries are learned from, of every expert."""
    names = mixture.expert_names
    return [_chosen(mixture, examples.get(name, ()), held_prompts(len(names))) for name in names]


def _single(chosen: Sequence[Sequence[Mapping[str, Tensor]]]) -> bool:
    """Return whether some expert has fewer than two prompts."""
    return any(sum(len(inputs["input_ids"]) for inputs in own) < 2 for own in chosen)


def _chosen(mixture: MixtureModel, examples: Examples, most: int) -> list[dict[str, Tensor]]:
    """Return an even part of the examples as the model's inputs, of `most` prompts."""
    all_inputs = []
    for example in examples:
        inputs = mixture.text_inputs(example) if isinstance(example, str) else dict(example)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        all_inputs.append(inputs)
    rows = [len(inputs["input_ids"]) for inputs in all_inputs]
    held = set(torch.linspace(0, sum(rows) - 1, min(sum(rows), most)).round().int().tolist())
    found, start = [], 0
    for inputs, number in zip(all_inputs, rows, strict=True):
        own = [row for row in range(number) if start + row in held]
        if own:
            found.append({key: value[own] for key, value in inputs.items()})
        start += number
    return found


def _parts(
    poolings: Mapping[str, AttentionPooling], chosen: Sequence[Sequence[Mapping[str, Tensor]]]
) -> Iterator[dict[str, AttentionPooling]]:
    """Yield the poolings in parts whose tokens have room, each of one at least."""
    tokens = sum(int(inputs["attention_mask"].sum()) for own in chosen for inputs in own)
    part: dict[str, AttentionPooling] = {}
    size = 0
    for reader, pooling in poolings.items():
        own = 2 * tokens * len(pooling.query)  # float16
        if part and size + own > KEPT_BYTES:
            yield part
            part, size = {}, 0
        part[reader], size = pooling, size + own
    if part:
        yield part


@torch.no_grad()
def _read(
    mixture: MixtureModel,
    poolings: Mapping[str, AttentionPooling],
    chosen: Sequence[Sequence[Mapping[str, Tensor]]],
    each: Callable[[], object],
) -> dict[str, list[Prompts]]:
    """Return, by reader, the tokens of every expert's prompts while it is at work itself.

    each: called after every batch.
    """
    found: dict[str, list[Prompts]] = {reader: [[] for _ in chosen] for reader in poolings}
    for expert, batches in enumerate(chosen):
        for inputs in batches:
            with contexts_of(mixture, inputs, expert=expert), tokens_of(poolings) as tokens:
                mixture.weights(**inputs)
            for reader, prompts in tokens.items():
                found[reader][expert] += prompts
            each()
    return found


@torch.enable_grad()
def learn_query(
    prompts: Sequence[Prompts], device: torch.device | None = None
) -> Float[Tensor, " D"]:
    """Return the query by which the prompts of each expert are told from those of others.

    prompts: of every expert, at least two of each. device: where it is learned.
    """
    chance = torch.Generator().manual_seed(0)
    tokens = _Tokens(prompts, device)
    width = tokens.values_TD.shape[1]
    query_D = torch.zeros(width, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([query_D], lr=_RATE / width**0.5)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = _episode(tokens.attended(query_D), tokens.own_N, chance)
        loss = loss + _PULL * query_D.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return query_D.detach()


def _episode(
    contexts_ND: Float[Tensor, "N D"], own_N: Int[Tensor, " N"], chance: torch.Generator
) -> Tensor:
    """Return how badly one half of the prompts tells whose the others are."""
    experts = int(own_N.max()) + 1
    order_N = torch.rand(len(own_N), generator=chance).to(own_N.device)
    first_N = torch.zeros_like(own_N, dtype=torch.bool)
    for expert in range(experts):
        places = (own_N == expert).nonzero()[:, 0]
        first_N[places[order_N[places].argsort()[: len(places) // 2]]] = True
    means_ED = torch.stack(
        [contexts_ND[first_N & (own_N == expert)].mean(0) for expert in range(experts)]
    )
    apart = 2 * (means_ED - means_ED.mean(0)).square().sum(1).mean().detach()
    # -|c - m|², but for |c|², which all scores share
    nearness_NE = 2 * contexts_ND[~first_N] @ means_ED.T - means_ED.square().sum(1)
    scores_NE = _SHARPNESS * nearness_NE / apart.clamp(min=1e-6)
    return nn.functional.cross_entropy(scores_NE, own_N[~first_N])


class _Tokens:
    """The tokens of all prompts side by side."""

    def __init__(self, prompts: Sequence[Prompts], device: torch.device | None = None) -> None:
        flat = [prompt for own in prompts for prompt in own]
        self.values_TD = torch.cat(flat).to(device).float()
        lengths = torch.tensor([len(prompt) for prompt in flat])
        self.prompt_T = torch.arange(len(flat)).repeat_interleave(lengths).to(device)
        sizes = torch.tensor([len(own) for own in prompts])
        self.own_N = torch.arange(len(prompts)).repeat_interleave(sizes).to(device)

    def attended(self, query_D: Float[Tensor, " D"]) -> Float[Tensor, "N D"]:
        """Return what the query attends to in each prompt, at root mean square 1."""
        scores_T = self.values_TD @ query_D
        lowest_N = scores_T.new_full((len(self.own_N),), -torch.inf)
        largest_N = lowest_N.scatter_reduce(0, self.prompt_T, scores_T.detach(), "amax")
        shares_T1 = (scores_T - largest_N[self.prompt_T]).exp()[:, None]
        sums_ND = self.values_TD.new_zeros(len(self.own_N), self.values_TD.shape[1])
        # the sum of shares only scales what is scaled here
        return unit_scale(sums_ND.index_add(0, self.prompt_T, shares_T1 * self.values_TD))
