"""The mixture of one layer: y = W x + Σ_e g_e s_e B_e A_e x, with all experts' matrices stacked.

Axes: `B` batch, `T` tokens, `D` input width, `O` output width, `E` experts, `R` ranks of all
experts side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.call import Call
from loramix.mixture.folding import can_fold
from loramix.mixture.gate import ContextGate
from loramix.mixture.layout import Form, from_rows, to_rows
from loramix.mixture.state import current_call
from loramix.mixture.update import FoldedWeight, Update, WeightedUpdate, add_product
from loramix.storage.experts import LowRank


class StackedA(nn.Module):
    """The lora_A of all experts and of all layers that read one input: one product serves all.

    ranks: the number of rows of each layer.
    """

    down_RD: Tensor

    def __init__(
        self,
        layers: Sequence[Sequence[LowRank]],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        stacked_RD = torch.cat([update.down_RD for updates in layers for update in updates])
        self.register_buffer("down_RD", stacked_RD.to(device, dtype))
        self.ranks = [sum(update.down_RD.shape[0] for update in updates) for updates in layers]

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T R"], ...]:
        """Return the down-projected input of each layer."""
        low_BTR = nn.functional.linear(x_BTD.to(self.down_RD.dtype), self.down_RD)
        return low_BTR.split_with_sizes(self.ranks, -1)


@dataclass(frozen=True)
class Role:
    """A layer's part in its model.

    group: the name of its gate group. reader: the layer of the group whose input the gate reads.
    form: of the input that the base hands to this layer. block: its number in the stack.
    """

    layer: str
    group: str
    reader: str
    form: Form = "rows"
    block: int = 0


class MixtureLinear(nn.Module):
    """A frozen linear layer with the frozen updates of its experts, weighed by a gate.

    updates: one entry per expert, None where an expert does not adapt this layer: it adds zero.
    gate: that of the layer's group; only the reader registers it, the others reuse its decision.
    stacked: the lora_A, of which this layer's are those at `index`; the layer at 0 registers them.
    """

    up_OR: Tensor
    expert_of_rank: Tensor

    def __init__(
        self,
        base: nn.Module,
        role: Role,
        updates: Sequence[LowRank | None],
        gate: ContextGate,
        *,
        stacked: StackedA,
        index: int,
    ) -> None:
        super().__init__()
        present = [(expert, each) for expert, each in enumerate(updates) if each is not None]
        ranks = [update.down_RD.shape[0] for _, update in present]
        if gate.config.mixing == "parameter" and len(set(ranks)) > 1:
            raise MixtureError(
                "parameter mixing needs equal ranks, but the experts of layer "
                f"'{role.layer}' have ranks {ranks}; use mixing='output'"
            )
        self.base, self.config = base, gate.config
        self.name, self.form = role.layer, role.form
        self.group, self.reader, self.block = role.group, role.reader, role.block
        self.gate = gate if role.layer == role.reader else None
        self.stacked = stacked if index == 0 else None
        self.index = index
        self._shared = (gate, stacked)  # a tuple keeps torch from registering them a second time
        self.rank = ranks[0] if gate.config.mixing == "parameter" else None

        down_RD = stacked.down_RD
        up_OR = torch.cat([update.up_OR.float() * update.scale for _, update in present], dim=1)
        experts = torch.tensor([expert for expert, _ in present])
        self.register_buffer("up_OR", up_OR.to(down_RD.device, down_RD.dtype))
        self.register_buffer(
            "expert_of_rank", experts.repeat_interleave(torch.tensor(ranks)).to(down_RD.device)
        )

    @property
    def group_gate(self) -> ContextGate:
        """The gate of this layer's group."""
        return self._shared[0]

    @property
    def shared_a(self) -> StackedA:
        """The stacked lora_A of all layers that read this layer's input."""
        return self._shared[1]

    @property
    def down(self) -> Float[Tensor, "R D"]:
        """The stacked lora_A of this layer alone."""
        stacked = self.shared_a
        return stacked.down_RD.split_with_sizes(stacked.ranks)[self.index]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some models look at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens O"]:
        """Return y = W x + Σ_e g_e s_e B_e A_e x."""
        call = current_call(self.name)
        x_BTD = to_rows(x, self.form, call.shape)
        if call.first is not None:  # the base alone is at work
            call.note(self, x_BTD)
            return self.base(x)  # type: ignore[no-any-return]
        update = call.kept_update(self.name)
        if update is None:  # g is decided here, or was by the reader of this layer's gate group
            update = self.update(x_BTD, call.weights(self, x_BTD), call)
        if isinstance(update, FoldedWeight):  # W + Σ_e g_e s_e B_e A_e, made once for this prompt
            return nn.functional.linear(x, update.weight_OD, update.bias_O)
        low_BTR = self._low(x_BTD, update, call)  # A_e x of every expert, side by side
        low_BTR = update.weigh(low_BTR)  # g_e A_e x
        return add_product(self.base(x), from_rows(low_BTR, self.form), update.up_OR)  # s_e B_e

    def update(
        self, x_BTD: Float[Tensor, "B T D"], weights_BTE: Float[Tensor, "B _ E"], call: Call
    ) -> Update:
        """Return the update at these weights; kept, and folded if wanted, where they stay so."""
        # A sum over the chosen experts alone gives the others no gradient, and has no shape that
        # could be compiled.
        sparse = call.fixed is not None or self.config.sparse
        sparse = sparse and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        update = self.weighted(weights_BTE, sparse=sparse)
        if call.updates is None:
            return update
        kept: Update = update
        folds = call.folding is not None and can_fold(self.base)
        if folds and not torch.compiler.is_compiling():
            if update.down_RD is None:
                update = replace(update, down_RD=self.down)
            assert call.folding is not None
            kept = call.folding.fold(self.base, update)
        call.updates[self.name] = kept
        return kept

    def weighted(self, weights_BTE: Float[Tensor, "B _ E"], *, sparse: bool) -> WeightedUpdate:
        """Return the stacked update at these weights.

        sparse: gather the experts that some row gives a weight, if they are half of all at most.
        """
        weights_BTE = weights_BTE.to(self.expert_of_rank.device)
        if sparse:
            chosen_E = (weights_BTE != 0).flatten(0, 1).any(0)
            chosen_R = chosen_E[self.expert_of_rank].nonzero()[:, 0]
            if 2 * len(chosen_R) <= len(self.expert_of_rank):
                weights_BTR = weights_BTE[..., self.expert_of_rank[chosen_R]]
                return WeightedUpdate(
                    self.down[chosen_R], self.up_OR[:, chosen_R], weights_BTR, self.rank
                )
        return WeightedUpdate(None, self.up_OR, weights_BTE[..., self.expert_of_rank], self.rank)

    def _low(
        self, x_BTD: Float[Tensor, "B T D"], update: WeightedUpdate, call: Call
    ) -> Float[Tensor, "B T R"]:
        """Return the input, down-projected for the experts of this update."""
        if update.down_RD is None:
            return call.down(x_BTD, self.shared_a, self.index)
        return nn.functional.linear(x_BTD.to(update.down_RD.dtype), update.down_RD)
