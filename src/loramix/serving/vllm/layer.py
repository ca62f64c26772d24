"""y = W x + Σ_e g_e s_e B_e A_e x inside one linear module of vLLM.

A module of vLLM may stand for several layers of the base (q, k and v), each with experts and, by
scope, a gate. Gates read, and experts act on, all inputs, which tensor parallelism may have spread
over processes; of the outputs each process computes its share.

Axes: `T` tokens of all requests, `D` input width, `O` output width, `E` experts, `R` ranks of all
experts side by side, `P` the layers of the base in the module.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear

from loramix.mixture.pooling import unit_scale
from loramix.mixture.update import WeightedUpdate
from loramix.serving.vllm.deciding import Decider, Held, decided


@dataclass(frozen=True)
class Part:
    """The experts of one layer of the base, in a module of vLLM.

    up_OR: scaling included, this process's outputs alone. start: of these outputs in the module.
    rank: of every expert, where matrices are mixed separately (parameter mixing), else None.
    """

    down_RD: Float[Tensor, "R D"]
    up_OR: Float[Tensor, "O R"]
    expert_of_rank: Tensor
    start: int
    rank: int | None


class MixedLinear(nn.Module):
    """A linear module of vLLM with the experts and gates of the layers that it stands for.

    gates: those that read here, in the layers' order. decider: makes the weights, where they depend
        on more than a token's own input. held: where that is enough, and all can be compiled.
    """

    down_RD: Tensor
    expert_of_rank: Tensor  # of those of every layer, side by side

    def __init__(
        self,
        base: LinearBase,
        parts: Sequence[Part],
        gates: Sequence[nn.Module],
        *,
        decider: Decider | None,
        held: Held,
    ) -> None:
        super().__init__()
        self.base, self.decider, self.held = base, decider, held
        self.gates = nn.ModuleList(gates)
        weight = base.weight
        down_RD = torch.cat([part.down_RD for part in parts])
        self.register_buffer("down_RD", down_RD.to(weight.device, weight.dtype), persistent=False)
        for i, part in enumerate(parts):
            up_OR = part.up_OR.to(weight.device, weight.dtype).contiguous()
            self.register_buffer(f"up_{i}", up_OR, persistent=False)
        experts = (decider or held).experts
        of_rank = torch.cat([part.expert_of_rank + i * experts for i, part in enumerate(parts)])
        self.register_buffer("expert_of_rank", of_rank.to(weight.device), persistent=False)
        self._ranks = [len(part.down_RD) for part in parts]
        self._outputs = [(part.start, part.start + len(part.up_OR)) for part in parts]
        self._rank = [part.rank for part in parts]
        self._gathers = isinstance(base, RowParallelLinear) and base.tp_size > 1
        self._gathers = self._gathers and base.input_is_parallel

    def forward(self, x_TD: Float[Tensor, "T D"]) -> object:
        """Return what the module of vLLM does, with the experts' outputs added."""
        output = self.base(x_TD)
        y_TO = output[0] if isinstance(output, tuple) else output
        if self._gathers:
            x_TD = tensor_model_parallel_all_gather(x_TD)
        weights_TR = self._weights(x_TD).flatten(1)[:, self.expert_of_rank].to(x_TD.dtype)
        low_TR = nn.functional.linear(x_TD, self.down_RD)
        for i, part_TR in enumerate(self._weighed(low_TR, weights_TR)):
            up_OR: Tensor = getattr(self, f"up_{i}")
            start, end = self._outputs[i]
            y_TO[:, start:end].addmm_(part_TR, up_OR.T)
        return output

    def _weighed(
        self, low_TR: Float[Tensor, "T R"], weights_TR: Float[Tensor, "T R"]
    ) -> Sequence[Float[Tensor, "T _"]]:
        """Return g_e A_e x of every expert, by layer; with parameter mixing, g_e Σ_f g_f A_f x."""
        if self._rank[0] is None:
            return (low_TR * weights_TR).split_with_sizes(self._ranks, -1)
        lows = low_TR.split_with_sizes(self._ranks, -1)
        weights = weights_TR.split_with_sizes(self._ranks, -1)
        return [
            WeightedUpdate(None, getattr(self, f"up_{i}"), weights[i], rank).weigh(lows[i])
            for i, rank in enumerate(self._rank)
        ]

    def _weights(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T P E"]:
        """Return the weights of the experts in every layer, for every token."""
        if self.decider is None:
            context_TD = unit_scale(x_TD.float())
            weights_TPE = torch.stack([decided(gate, context_TD) for gate in self.gates], 1)
            return self.held(weights_TPE)  # type: ignore[no-any-return]
        if not torch.compiler.is_compiling():
            return self.decider(x_TD)
        found: Tensor = torch.ops.loramix.decide(
            x_TD, self.decider.name, len(self._ranks), self.decider.experts
        )
        return found


@torch.library.custom_op("loramix::decide", mutates_args=())
def _decide(x_TD: Tensor, name: str, layers: int, experts: int) -> Tensor:
    """Decide the weights outside of compiled code, where requests are known."""
    decider: Decider = get_forward_context().no_compile_layers[name]
    return decider(x_TD)


@_decide.register_fake
def _(x_TD: Tensor, name: str, layers: int, experts: int) -> Tensor:
    return x_TD.new_empty((x_TD.shape[0], layers, experts), dtype=torch.float32)
