"""The table of cases: every shape, context, activation and mixing that a mixture offers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import strengthen, tiny_model

from loramix import GateConfig, MixtureModel

SHAPES = ["t5", "llama", "gpt2"]
CONTEXTS = ["prompt", "running", "token", "reference"]
ACTIVATIONS = ["softmax", "sigmoid", "top-k", "top-1"]
MIXING = ["output", "parameter"]
Experts = Callable[..., dict[str, Path]]


@dataclass(frozen=True)
class Case:
    shape: str
    context: str
    activation: str = "softmax"
    mixing: str = "output"
    scope: str = "layer"
    base_slot: bool = False

    def __str__(self) -> str:
        parts = [
            self.shape,
            self.context,
            self.activation,
            self.mixing,
            self.scope,
            "base" if self.base_slot else "",
        ]
        return "-".join(filter(None, parts))

    @property
    def config(self) -> GateConfig:
        return GateConfig(
            context=self.context,
            activation=self.activation,
            mixing=self.mixing,
            scope=self.scope,
            base_slot=self.base_slot,
            temperature=0.8,
        )

    def build(
        self,
        experts: Experts,
        names: Iterable[str] = ("a", "b", "c"),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> MixtureModel:
        base = tiny_model(self.shape).to(dtype)
        return strengthen(
            MixtureModel.from_experts(base, experts(self.shape, tuple(names)), gate=self.config)
        )


CASES = [Case(*choice) for choice in product(SHAPES, CONTEXTS, ACTIVATIONS, MIXING)]
SHARED = [
    Case(shape, context, scope=scope)
    for shape, context, scope in product(SHAPES, CONTEXTS, ["block", "model"])
]
WITH_BASE = [
    Case(shape, "token", activation, base_slot=True)
    for shape in SHAPES
    for activation in ("softmax", "top-1")
]
ALL = [*CASES, *SHARED, *WITH_BASE]
GENERATING = [
    case for case in ALL if case.context != "reference"
]  # the reference gate needs the whole target


def over(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Run a test for each of these cases."""
    return pytest.mark.parametrize("case", list(cases), ids=str)
