"""Context gates: small networks that give every expert a weight, from what their layer reads.

    context_BTD = what the gate may see of the layer's input: `read`
    scores_BTE  = (W2 relu(W1 context + b1) + b2) / temperature
    weights_BTE = softmax(scores), or another activation

Axes: `B` batch, `T` tokens (1 where one decision holds for a whole row), `D` input width, `E`
experts, `S` slots: the experts and, where the gate may turn all of them off, the base.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.problems import gate_problems


class ContextGate(nn.Module):
    """A 2-layer perceptron and an activation over the experts, computed in float32.

    Its scores start at zero, so every gate starts at the uniform mixture. `prior` scales every
    slot's share before
    normalisation: w_e ∝ prior_e exp(score_e / temperature). It is one and frozen, except for
        experts that were added
    later: they start at zero, which leaves the answers as they were, and learn it.
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
        self.prior = nn.Parameter(torch.ones(slots), requires_grad=False)
        self.equal_priors = True
        self.register_load_state_dict_post_hook(_settle)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.score.weight)
        if bias:
            nn.init.zeros_(self.score.bias)

    @property
    def width(self) -> int:
        """The width of what the gate reads."""
        return self.lift.in_features

    def forward(
        self, context_BTD: Float[Tensor, "B T D"], mask_BT: Bool[Tensor, "B _"]
    ) -> Float[Tensor, "B _ E"]:
        """Return the experts' weights for what `read` made of an input: one decision for each of
        its tokens.

        A `reference` gate decides once for each row, over the tokens where `mask_BT` is true;
        others do not need it.
        """
        with _in_float32(context_BTD):
            scores = self.score(self.lift(context_BTD).relu())
            if self.config.temperature != 1:
                scores = scores / self.config.temperature
            if self.config.context == "reference":
                scores = masked_mean(scores, mask_BT)
            return self._weights(scores)

    def rearranged(self, order: Sequence[int | None]) -> "ContextGate":
        """Return a copy whose expert i is this gate's expert order[i]; None stands for one that it
        does not know.
        """
        gate = ContextGate(self.width, len(order), self.config).to(self.prior.device)
        gate.lift.load_state_dict(self.lift.state_dict())
        slots = [*order, *([self.experts] if self.config.base_slot else [])]
        old, new = self.state_dict(), gate.state_dict()
        for key in ("score.weight", "score.bias", "prior"):
            for slot, source in enumerate(slots):
                if key in new:  # a state dict shares its memory with the parameters
                    new[key][slot] = 0.0 if source is None else old[key][source]
        return gate.settle()

    def settle(self) -> "ContextGate":
        """Let the priors be trained where they are not all one, and return the gate; to be called
        once they are set.
        """
        self.equal_priors = not bool((self.prior != 1).any())
        self.prior.requires_grad_(not self.equal_priors)
        return self

    def _weights(self, scores: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch E"]:
        # Forward, a prior below zero counts as zero; backward, it still gets its gradient and can
        # come back.
        prior_S = (
            None
            if self.equal_priors
            else self.prior + (self.prior.clamp(min=0) - self.prior).detach()
        )
        if self.config.activation == "sigmoid":
            return (
                scores.sigmoid() if prior_S is None else prior_S * scores.sigmoid()
            )  # each in (0, prior)
        weights = (
            scores.softmax(-1) if prior_S is None else softmax_with_prior(scores, prior_S)
        )  # rows sum to 1
        if self.config.activation != "softmax":
            weights = keep_largest(
                weights, self.config.k if self.config.activation == "top-k" else 1
            )
        return weights[..., : self.experts]


def read(
    config: GateConfig,
    hidden_BTD: Float[Tensor, "B T D"],
    mask_BT: Bool[Tensor, "B T"],
    state_BF: Float[Tensor, "B F"] | None = None,
) -> tuple[Float[Tensor, "B _ D"], Float[Tensor, "B F"] | None]:
    """Return what a gate sees of a layer's input, and the state with which a running mean goes on.

    A `prompt` gate sees one token for the whole row: the mean over the tokens where `mask_BT` is
    true.
    """
    with _in_float32(hidden_BTD):
        match config.context:
            case "prompt":
                return _unit_scale(masked_mean(hidden_BTD, mask_BT)), None
            case "running":
                mean_BTD, state_BF = running_mean(hidden_BTD, mask_BT, state_BF)
                return _unit_scale(mean_BTD), state_BF
            case "token":
                return _unit_scale(hidden_BTD.float()), None
            case "reference":
                return hidden_BTD.float(), None


def softmax_with_prior(
    scores: Float[Tensor, "*batch S"], prior_S: Float[Tensor, " S"]
) -> Float[Tensor, "*batch S"]:
    """Return w_s = prior_s exp(score_s) / Σ prior exp(score); at least one prior must be above
    zero.
    """
    largest = scores.detach().masked_fill(prior_S <= 0, -torch.inf).amax(-1, keepdim=True)
    shares = (
        prior_S * (scores - largest).clamp(max=60).exp()
    )  # a slot of prior 0 may score above all others
    return shares / shares.sum(-1, keepdim=True)


def keep_largest(weights: Float[Tensor, "*batch S"], k: int) -> Float[Tensor, "*batch S"]:
    """Return the k largest weights of each row scaled to sum to 1 and zeros; gradients are those of
    `weights`.
    """
    kept = torch.zeros_like(weights).scatter(-1, weights.topk(k).indices, 1.0) * weights.detach()
    return weights + (kept / kept.sum(-1, keepdim=True) - weights).detach()


def masked_mean(
    values_BTD: Float[Tensor, "B T D"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1 D"]:
    """Return the float32 mean over the tokens where `mask_BT` is true, as one token; a row without
    any gives zeros.
    """
    shares_BT = mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1)
    with _in_float32(values_BTD):
        return torch.bmm(
            shares_BT[:, None], values_BTD.float()
        )  # one pass over the values, and no copy of them


def running_mean(
    values_BTD: Float[Tensor, "B T D"],
    mask_BT: Bool[Tensor, "B T"],
    state_BF: Float[Tensor, "B D+1"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D+1"]]:
    """Return, for every token, the float32 mean of the valid tokens up to it, and the state with
    which to go on.

    The state is the sum of all valid tokens so far and, in its last column, their number.
    """
    mask_BT1 = mask_BT[..., None]
    ones_BT1 = torch.ones_like(mask_BT1, dtype=torch.float32)
    counted_BTF = (
        torch.cat([values_BTD.float(), ones_BT1], -1).masked_fill(~mask_BT1, 0.0).cumsum(1)
    )
    if state_BF is not None:
        counted_BTF = counted_BTF + state_BF[:, None]
    return counted_BTF[..., :-1] / counted_BTF[..., -1:].clamp(min=1), counted_BTF[:, -1]


def _settle(gate: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(gate, ContextGate)
    gate.settle()


def _in_float32(values: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from computing with fewer bits inside the block."""
    kind = values.device.type  # entering autocast takes longer than a gate does
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _unit_scale(context_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Scale each context to root mean square 1, so that one learning rate suits every layer of
    every base.
    """
    return nn.functional.rms_norm(context_BTD, context_BTD.shape[-1:], eps=1e-6)
