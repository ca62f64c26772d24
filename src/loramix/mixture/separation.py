"""Separation: nearest means, moved where they take the prompts of one expert for another's.

Nearest means say how the contexts of every expert lie, and not where its neighbours begin: a haiku
about an abstract lies close to the mean of titles. Multinomial logistic regression draws these
lines. With s_e the scores of nearest means, it looks for the Δ with the least

    mean over experts e of (mean over its contexts c of -log softmax_e(s(c) + Δ (c - c̄) + δ))
        + PULL v |Δ|² / 2

c̄ being the mean of all contexts, and v the variance of one expert's around their own mean. What
nearest means tell apart already pulls at nothing, so little moves there. The minimum is unique but
for a shift that all scores share, the rule remains linear, and no language model is run for it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.config import GateConfig
from loramix.mixture.gate import ContextGate
from loramix.mixture.means import write_linear

PULL = 1e-5  # towards nearest means, by the variance of a context in squared units of its scale
_STEPS = 60  # of L-BFGS, at most; after 15 most of it is done


def can_separate(config: GateConfig) -> bool:
    """Whether a gate's weights are one softmax over what it reads of a whole prompt."""
    return config.context == "prompt" and config.activation != "sigmoid" and not config.carry


@torch.no_grad()
def separate(gate: ContextGate, contexts: Sequence[Float[Tensor, "_ D"]]) -> None:
    """Tell the experts apart by their contexts, starting from the nearest means of the gate.

    contexts: of every expert's prompts. A gate whose means are alike stays as it is.
    """
    if not bool((gate.score.weight[: gate.experts] != 0).any()):
        return
    place = gate.prior.device
    parts = [each.to(place, torch.float32) for each in contexts]
    contexts_ND = torch.cat(parts)
    centre_D = contexts_ND.mean(0)
    change_ED, shift_E = _least(gate, parts, contexts_ND, contexts_ND - centre_D)
    heat = gate.config.temperature
    for expert in range(gate.experts):  # each has the hidden unit of its number
        weight_D = gate.lift.weight[expert] + heat * change_ED[expert]
        bias = gate.score.bias[expert] + gate.lift.bias[expert]
        bias = bias + heat * (shift_E[expert] - change_ED[expert] @ centre_D)
        write_linear(gate, expert, expert, weight_D, bias)


@torch.enable_grad()
def _least(
    gate: ContextGate,
    parts: Sequence[Float[Tensor, "_ D"]],
    contexts_ND: Float[Tensor, "N D"],
    centred_ND: Float[Tensor, "N D"],
) -> tuple[Float[Tensor, "E D"], Float[Tensor, " E"]]:
    """Return Δ and δ."""
    sizes = torch.tensor([len(part) for part in parts], device=contexts_ND.device)
    own_N = torch.arange(len(parts), device=sizes.device).repeat_interleave(sizes)
    share_N = (1 / sizes / len(parts)).repeat_interleave(sizes)  # as much for every expert
    apart_N = torch.cat([(part - part.mean(0)).square().sum(1) for part in parts])
    pull = PULL * float(share_N @ apart_N)
    with torch.no_grad():
        start_NE = gate.score(gate.lift(contexts_ND).relu())[:, : gate.experts]
        start_NE = start_NE / gate.config.temperature
    change_ED = contexts_ND.new_zeros(len(parts), contexts_ND.shape[1], requires_grad=True)
    shift_E = contexts_ND.new_zeros(len(parts), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [change_ED, shift_E], max_iter=_STEPS, history_size=8, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_NE = start_NE + centred_ND @ change_ED.T + shift_E
        wrong_N = torch.nn.functional.cross_entropy(scores_NE, own_N, reduction="none")
        found: Tensor = share_N @ wrong_N + pull * change_ED.square().sum() / 2
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return change_ED.detach(), shift_E.detach()
