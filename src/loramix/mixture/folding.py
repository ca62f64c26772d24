"""Folding: for one generation the experts are part of the weights, and cost nothing per token.

It takes weights that hold for every row and every step: those of one prompt, or fixed ones. The
layers then use copies of their weights with the update added; the base's own are never written, so
there is nothing to restore, whatever interrupts the generation. Copies are made at the second
token, by the layers that are asked for one: not by an encoder, nor for the keys of cross-attention.
"""

import threading
import weakref

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loramix.mixture.linear import is_transposed
from loramix.mixture.update import FoldedWeight, WeightedUpdate


class Folding:
    """Makes the folded weights of one mixture.

    Their memory is kept for the next generation: to be given new pages takes longer than the sums.
    It is used again once nobody holds what was folded there, be it a generation in another thread
    or a cache that was returned.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, weakref.ref[FoldedWeight]]] = {}
        self._lock = threading.Lock()

    def fold(self, base: nn.Module, update: WeightedUpdate) -> FoldedWeight:
        """Return a copy of the base's weight with the update of the first row added.

        `can_fold(base)` must hold.
        """
        weight, bias = base.weight, base.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        with self._lock:
            copy = self._unused(base, weight)
            if copy is None:
                # A tensor made in inference mode could not be written to outside of it.
                with torch.inference_mode(False):
                    copy = torch.empty_like(weight)
            made = FoldedWeight(copy.T if is_transposed(base) else copy, bias)
            self._copies[id(base)] = copy, weakref.ref(made)
        up_OR, down_RD = update.matrices()
        left, right = (down_RD.T, up_OR.T) if is_transposed(base) else (up_OR, down_RD)
        torch.addmm(weight, left, right, out=copy)
        return made

    def clear(self) -> None:
        """Give back the memory that nobody uses."""
        with self._lock:
            self._copies.clear()

    def __reduce__(self) -> tuple[type["Folding"], tuple[()]]:
        return Folding, ()  # a copied mixture makes its own

    def _unused(self, base: nn.Module, like: Tensor) -> Tensor | None:
        """Return the memory that an earlier generation has left for this layer, if it fits."""
        if id(base) not in self._copies:
            return None
        copy, user = self._copies[id(base)]
        same_kind = copy.dtype == like.dtype and copy.device == like.device
        fits = same_kind and copy.shape == like.shape
        return copy if fits and user() is None else None


def can_fold(base: nn.Module) -> bool:
    """Return whether a layer does nothing but multiply by a weight that can be added to.

    Quantised layers do not, nor do those with hooks or a replaced `forward`, as of models spread
    over devices.
    """
    hooked = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    return type(base) in (nn.Linear, Conv1D) and not hooked and base.weight.is_floating_point()  # type: ignore[operator]
