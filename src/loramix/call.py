"""What the layers need to know of the call that they are part of, carried per thread and never shared.

A base model calls its linear layers with their input alone. The mixture therefore opens a `Call` around each stack of
layers (the encoder, the decoder, or the whole of a decoder-only model), and a layer asks for the one it is in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass
class Call:
    """One pass through one stack.

    `mask_BT` marks the tokens of the stack's own input that a gate may read. In a decoder with cross-attention,
    `encoder_BSD` and `encoder_mask_BS` are the encoder's output and its valid tokens. `weights` holds what every layer
    decided, by layer name: filled during the prefill, given back with the cache afterwards.
    """

    mask_BT: Bool[Tensor, "B T"] | None = None
    encoder_BSD: Float[Tensor, "B S D"] | None = None
    encoder_mask_BS: Bool[Tensor, "B S"] | None = None
    weights: dict[str, Float[Tensor, "B E"]] = field(default_factory=dict)
    fixed_E: Float[Tensor, " E"] | None = None
    outer: "Call | None" = None

    def replayed(self) -> "Call":
        """Return the call as it was before its layers ran, for gradient checkpointing's second forward pass."""
        return Call(self.mask_BT, self.encoder_BSD, self.encoder_mask_BS, dict(self.given), self.fixed_E, None)

    def __post_init__(self) -> None:
        self.given = dict(self.weights)


_current: ContextVar[Call | None] = ContextVar("loramix_call", default=None)
_fixed: ContextVar[Float[Tensor, " E"] | None] = ContextVar("loramix_fixed", default=None)
_prompt_mask: ContextVar[Bool[Tensor, "B T"] | None] = ContextVar("loramix_prompt_mask", default=None)
