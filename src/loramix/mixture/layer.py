"""The mixture of one layer: y = W x + Σ_e g_e s_e B_e A_e x, with all experts' matrices stacked.

Axes: `B` batch, `T` tokens, `D` input width, `O` output width, `E` experts, `R` ranks of all
experts side by side.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix.errors import MixtureError
from loramix.mixture.call import Call, Memory, Used, thread
from loramix.mixture.folding import can_fold
from loramix.mixture.gate import ContextGate
from loramix.mixture.update import Folded, Gathered, Update
from loramix.storage.experts import LowRank


class Downs(nn.Module):
    """The experts' down-projections of all layers that read one input, side by side: one product
    serves them all.

    ranks: the number of rows of each layer.
    """

    down_RD: Tensor

    def __init__(
        self, layers: Sequence[Sequence[LowRank]], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        stacked_RD = torch.cat([update.down_RD for updates in layers for update in updates])
        self.register_buffer("down_RD", stacked_RD.to(device, dtype))
        self.ranks = [sum(update.down_RD.shape[0] for update in updates) for updates in layers]

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T R"], ...]:
        """Return the down-projected input of each layer."""
        return nn.functional.linear(x_BTD.to(self.down_RD.dtype), self.down_RD).split_with_sizes(
            self.ranks, -1
        )


class MixtureLinear(nn.Module):
    """A frozen linear layer with the frozen updates of its experts, weighed by a gate.

    updates: one entry per expert, None where an expert does not adapt this layer: it adds zero
        here.
    downs: the down-projections, of which this layer's are those at `place`; the first layer keeps
        them.
    gate: this layer's own, or the one that it shares with others; `reads` says whether it decides
        from this layer's input. The other layers of the group reuse the decision.
    """

    up_OR: Tensor
    expert_of_rank: Tensor

    def __init__(
        self,
        base: nn.Module,
        name: str,
        updates: Sequence[LowRank | None],
        gate: ContextGate,
        *,
        downs: Downs,
        place: int,
        group: str,
        reads: bool,
    ) -> None:
        super().__init__()
        present = [(expert, update) for expert, update in enumerate(updates) if update is not None]
        ranks = [update.down_RD.shape[0] for _, update in present]
        if gate.config.mixing == "parameter" and len(set(ranks)) > 1:
            raise MixtureError(
                f"parameter mixing needs equal ranks, but the experts of layer '{name}' have "
                f"ranks {ranks}; "
                "use mixing='output'"
            )
        self.base, self.name, self.group, self.config = base, name, group, gate.config
        self.gate = gate if reads else None
        self.downs = downs if place == 0 else None
        self._shared = (gate, downs)  # a tuple keeps torch from registering them a second time
        self.place = place
        up_OR = torch.cat([update.up_OR.float() * update.scale for _, update in present], dim=1)
        expert_of_rank = torch.tensor(
            [expert for (expert, _), rank in zip(present, ranks, strict=True) for _ in range(rank)]
        )
        self.register_buffer("up_OR", up_OR.to(downs.down_RD.device, downs.down_RD.dtype))
        self.register_buffer("expert_of_rank", expert_of_rank.to(downs.down_RD.device))
        self.rank = ranks[0] if gate.config.mixing == "parameter" else None

    @property
    def down(self) -> Float[Tensor, "R D"]:
        """The down-projections of this layer's experts."""
        _, downs = self._shared
        return downs.down_RD.split_with_sizes(downs.ranks)[self.place]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some models look at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T O"]:
        """Return the base layer's output plus the weighted updates of all experts."""
        call = thread.here.call
        if call is None:
            raise MixtureError(
                f"layer '{self.name}' was called outside its mixture; call the whole model instead"
            )
        update = (
            None
            if call.updates is None or thread.here.record is not None
            else call.updates.get(self.name)
        )
        if update is None:
            update = self._update(x_BTD, call)
        if isinstance(update, Folded):
            return nn.functional.linear(x_BTD, update.weight_OD, update.bias_O)
        if update.down_RD is None:
            low_BTR = call.low(x_BTD, self._shared[1], self.place)
        else:
            low_BTR = nn.functional.linear(x_BTD.to(update.down_RD.dtype), update.down_RD)
        return update.add(self.base(x_BTD), low_BTR)

    def gathered(self, weights_BTE: Float[Tensor, "B _ E"], *, sparse: bool) -> Gathered:
        """Return the update at these weights; `sparse`: without the experts that get none, if they
        are the most.
        """
        weights_BTE = weights_BTE.to(self.expert_of_rank.device)
        if sparse:
            chosen_R = (weights_BTE != 0).flatten(0, 1).any(0)[self.expert_of_rank].nonzero()[:, 0]
            if 2 * len(chosen_R) <= len(self.expert_of_rank):
                weights_BTR = weights_BTE[..., self.expert_of_rank[chosen_R]]
                return Gathered(
                    self.down[chosen_R], self.up_OR[:, chosen_R], weights_BTR, self.rank
                )
        return Gathered(None, self.up_OR, weights_BTE[..., self.expert_of_rank], self.rank)

    def _update(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Update:
        """Return the update for this input, and keep it where the weights stay as they are."""
        fixed = call.fixed
        used = (
            self._decision(x_BTD, call)
            if fixed is None
            else Used(fixed.of(self.name, len(x_BTD)), None)
        )
        if thread.here.record is not None:
            thread.here.record[self.name] = used
        # A sum over the chosen alone gives the others no gradient, and has no shape that could be
        # compiled.
        sparse = fixed is not None or self.config.sparse
        sparse = sparse and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        update = self.gathered(used.weights, sparse=sparse)
        if call.updates is None:
            return update
        kept: Update = update
        if call.folding is not None and can_fold(self.base) and not torch.compiler.is_compiling():
            kept = call.folding.fold(
                self.base, replace(update, down_RD=self.down) if update.down_RD is None else update
            )
        call.updates[self.name] = kept
        return kept

    def _decision(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Used:
        """Return the decision that this layer's group has made, or make it."""
        memory = call.memory if self.config.context != "prompt" else None
        if memory is None or x_BTD is not memory.hidden_BSD:
            if self.group not in call.decided:
                call.decided[self.group] = self._decide(x_BTD, call)
            return Used(call.decided[self.group], call.mask_BT)
        # the keys and values of cross-attention have the encoder's tokens
        of_memory = f"{self.group} of memory"
        if of_memory not in call.decided:
            call.decided[of_memory] = self._decide_of_memory(memory, call)
        return Used(call.decided[of_memory], memory.mask_BS)

    def _decide(self, x_BTD: Float[Tensor, "B T D"], call: Call) -> Float[Tensor, "B _ E"]:
        """Let the gate decide from this layer's input or, as a prompt gate in a decoder, from the
        encoder's output.
        """
        if self.gate is None:
            raise MixtureError(
                f"layer '{self.name}' runs before the layer from which the gate of '{self.group}' "
                "reads; "
                "use scope='layer' with this base model"
            )
        if self.config.context == "prompt" and call.memory is not None:
            context_B1D, _ = call.context(self.config, call.memory.mean_B1D, call.memory.one_B1)
            return self.gate(context_B1D, call.memory.one_B1)  # type: ignore[no-any-return]
        if call.mask_BT is None or call.mask_BT.shape != x_BTD.shape[:2]:
            raise MixtureError(
                f"layer '{self.name}' reads input of shape {list(x_BTD.shape)}, which are not the "
                "tokens of its stack, "
                "so its gate cannot tell which of them are real"
            )
        context_BTD, state_BF = call.context(
            self.config, x_BTD, call.mask_BT, call.states.get(self.group)
        )
        if state_BF is not None:
            call.states[self.group] = state_BF
        return self.gate(context_BTD, call.mask_BT)  # type: ignore[no-any-return]

    def _decide_of_memory(self, memory: Memory, call: Call) -> Float[Tensor, "B _ E"]:
        """Let the gate, which may be another layer's, decide from the encoder's tokens that this
        layer reads.
        """
        gate, _ = self._shared
        width = memory.hidden_BSD.shape[-1]
        if gate.width != width:
            raise MixtureError(
                f"layer '{self.name}' reads the encoder's output of width {width}, but the gate "
                f"of '{self.group}' "
                f"reads width {gate.width}; use scope='layer' with these experts"
            )
        context_BSD, _ = call.context(self.config, memory.hidden_BSD, memory.mask_BS)
        return gate(context_BSD, memory.mask_BS)  # type: ignore[no-any-return]
