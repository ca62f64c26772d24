"""Context gates: small networks that give every expert a weight, from what their layer reads.

    context_BTD = the gate's view of the layer's input, see `loramix.mixture.context`
    scores_BTE  = (W2 relu(W1 context + b1) + b2) / temperature
    weights_BTE = softmax(scores), or another activation

Axes: `B` batch, `T` tokens (1 where one decision holds for a whole row), `D` input width, `E`
experts, `S` slots: the experts and, where the gate may turn all of them off, the base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.context import in_float32, masked_mean
from loramix.mixture.pooling import AttentionPooling
from loramix.mixture.problems import gate_problems


@dataclass
class Evidence:
    """The scores of the gates that a pass has come through, and the blocks of layers they lie in.

    A gate decides by their sum, over the number of these blocks. A sum, so that gates which know
    nothing yet change nothing; over the blocks, so that it stays as large in deep bases.

    Axes: `S` slots, the experts and perhaps the base.
    """

    sum_BTS: Tensor | None = None
    blocks: int = 1

    def with_scores(self, scores_BTS: Float[Tensor, "B T S"]) -> Float[Tensor, "B T S"]:
        """Add the scores of one more gate, and return what it decides by."""
        before = self.sum_BTS
        self.sum_BTS = scores_BTS if before is None else before.to(scores_BTS.device) + scores_BTS
        return self.sum_BTS / self.blocks


class ContextGate(nn.Module):
    """A 2-layer perceptron and an activation over the experts, computed in float32.

    Its scores start at zero, so every gate starts at the uniform mixture.

    `prior` scales every slot's share: w_s ∝ prior_s exp(score_s / temperature). It is one and
    frozen, except for experts that were added later: theirs starts at zero, which leaves all
    answers as they were, and is learned. `pooling` makes the contexts; None where they are means.
    """

    def __init__(self, width: int, experts: int, config: GateConfig) -> None:
        super().__init__()
        for setting, problem in gate_problems(config, experts=experts):
            raise MixtureError(f"{setting}: {problem}")
        self.config, self.experts = config, experts
        bias = config.context != "reference"
        slots = experts + config.base_slot
        self.lift = nn.Linear(width, config.hidden, bias=bias)
        self.score = nn.Linear(config.hidden, slots, bias=bias)
        attends = config.context == "prompt" and config.pooling == "attention"
        self.pooling = AttentionPooling(width) if attends else None
        self.prior = nn.Parameter(torch.ones(slots), requires_grad=False)
        self.equal_priors = True
        self.register_load_state_dict_post_hook(_train_unequal_priors)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.score.weight)
        if bias:
            nn.init.zeros_(self.score.bias)

    @property
    def width(self) -> int:
        """The width of what the gate reads."""
        return self.lift.in_features

    def forward(
        self,
        context_BTD: Float[Tensor, "B T D"],
        mask_BT: Bool[Tensor, "B _"],
        evidence: Evidence | None = None,
    ) -> Float[Tensor, "B _ E"]:
        """Return the experts' weights for each context.

        evidence: of the gates before this one, to which its scores are added; None: it decides
            alone.

        A `reference` gate decides once for each row, from the mean of its scores over the tokens
        where `mask_BT` is true; other gates do not need the mask.
        """
        with in_float32(context_BTD):
            scores = self.score(self.lift(context_BTD).relu())
            if self.config.temperature != 1:
                scores = scores / self.config.temperature
            if self.config.context == "reference":
                scores = masked_mean(scores, mask_BT)
            if evidence is not None:
                scores = evidence.with_scores(scores)
            return self._weights(scores)

    def rearranged(
        self, order: Sequence[int | None], *, hidden: int | None = None
    ) -> "ContextGate":
        """Return a copy whose expert i is this gate's expert order[i], or a new one for None.

        hidden: its hidden units, as many as this gate's if None; further ones have no effect.
        """
        hidden = self.config.hidden if hidden is None else hidden
        config = self.config.model_copy(update={"hidden": hidden})
        gate = ContextGate(self.width, len(order), config).to(self.prior.device)
        slots = [*order, *([self.experts] if self.config.base_slot else [])]
        kept = min(hidden, self.config.hidden)
        old, new = self.state_dict(), gate.state_dict()  # these share memory with the parameters
        for key in ("lift.weight", "lift.bias"):
            if key in new:
                new[key].zero_()
                new[key][:kept] = old[key][:kept]
        if "pooling.query" in new:
            new["pooling.query"].copy_(old["pooling.query"])
        for key in ("score.weight", "score.bias", "prior"):
            if key not in new:
                continue
            new[key].zero_()
            for slot, source in enumerate(slots):
                if source is not None and key == "score.weight":
                    new[key][slot, :kept] = old[key][source, :kept]
                elif source is not None:
                    new[key][slot] = old[key][source]
        return gate.train_unequal_priors()

    def train_unequal_priors(self) -> "ContextGate":
        """Train the priors if they are not all one, freeze them otherwise; return the gate.

        Called whenever priors have been set.
        """
        self.equal_priors = not bool((self.prior != 1).any())
        self.prior.requires_grad_(not self.equal_priors)
        return self

    def _weights(self, scores: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch E"]:
        """Return the experts' weights for the scores of all slots."""
        if self.equal_priors:
            prior_S = None
        else:
            # Forward, a prior below zero counts as zero; backward, it still gets its gradient and
            # can come back.
            prior_S = self.prior + (self.prior.clamp(min=0) - self.prior).detach()
        if self.config.activation == "sigmoid":
            weights = scores.sigmoid()
            return weights if prior_S is None else prior_S * weights  # each in (0, prior)
        weights = scores.softmax(-1) if prior_S is None else softmax_with_prior(scores, prior_S)
        if self.config.sparse:
            kept = self.config.k if self.config.activation == "top-k" else 1
            weights = keep_largest(weights, kept)
        return weights[..., : self.experts]  # rows sum to 1, less the share of a base slot


def state_of(gates: Mapping[str, ContextGate]) -> dict[str, Tensor]:
    """Return the parameters of gates, by reader and parameter name."""
    state: dict[str, Tensor] = {}
    for reader, gate in gates.items():
        state |= {f"{reader}.{key}": tensor for key, tensor in gate.state_dict().items()}
    return state


@torch.no_grad()
def load_state(gates: Mapping[str, ContextGate], state: Mapping[str, Tensor]) -> None:
    """Set the parameters of gates; raises MixtureError unless `state` holds exactly those."""
    own = state_of(gates)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise MixtureError(
            f"the gates do not fit: {len(missing)} parameters missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}"
        )
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise MixtureError(
                f"gate parameter '{key}' has shape {list(state[key].shape)}, "
                f"expected {list(tensor.shape)}"
            )
        if not state[key].isfinite().all():
            raise MixtureError(f"gate parameter '{key}' holds NaN or inf")
        tensor.copy_(state[key])
    for gate in gates.values():
        gate.train_unequal_priors()


def softmax_with_prior(
    scores: Float[Tensor, "*batch S"], prior_S: Float[Tensor, " S"]
) -> Float[Tensor, "*batch S"]:
    """Return w_s = prior_s exp(score_s) / Σ prior exp(score); one prior must be above 0."""
    largest = scores.detach().masked_fill(prior_S <= 0, -torch.inf).amax(-1, keepdim=True)
    # A slot of prior 0 may score above all others, so its exponent is bounded.
    shares = prior_S * (scores - largest).clamp(max=60).exp()
    return shares / shares.sum(-1, keepdim=True)


def keep_largest(weights: Float[Tensor, "*batch S"], k: int) -> Float[Tensor, "*batch S"]:
    """Return the k largest weights of each row, scaled to sum to 1, and zeros.

    Gradients are those of `weights` (straight-through: Bengio et al. 2013, arXiv:1308.3432).
    """
    kept = torch.zeros_like(weights).scatter(-1, weights.topk(k).indices, 1.0) * weights.detach()
    return weights + (kept / kept.sum(-1, keepdim=True) - weights).detach()


def _train_unequal_priors(gate: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(gate, ContextGate)
    gate.train_unequal_priors()
