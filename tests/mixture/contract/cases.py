"""The table of cases: every shape, context, activation, mixing, scope and base slot that a mixture
offers.

A default run takes few cases, in which all pairs of settings occur (`test_cases.py` holds them to
that); the whole product is marked slow.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import strengthen, tiny_model
from hypothesis import settings

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
    carry: bool = False  # whether gates decide by the scores of those before them too
    first_pass: bool = False  # whether they decide together, from a pass of the base alone
    pooling: str = "mean"

    def __str__(self) -> str:
        parts = [
            self.shape,
            self.context,
            self.activation,
            self.mixing,
            self.scope,
            "base" if self.base_slot else "",
            "carry" if self.carry else "",
            "first" if self.first_pass else "",
            self.pooling if self.pooling != "mean" else "",
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
            carry=self.carry,
            first_pass=self.first_pass,
            pooling=self.pooling,
        )

    def build(
        self,
        experts: Experts,
        names: Iterable[str] = ("a", "b", "c"),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> MixtureModel:
        """Return a mixture of this case that the caller may change."""
        base = tiny_model(self.shape).to(dtype)
        return strengthen(
            MixtureModel.from_experts(base, experts(self.shape, tuple(names)), gate=self.config)
        )

    def shared(
        self,
        experts: Experts,
        names: Iterable[str] = ("a", "b", "c"),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> MixtureModel:
        """Return what `build` returns, made once for all tests, none of which may change it.

        Most of a small mixture's time goes into building it.
        """
        made = self, tuple(names), dtype
        if made not in _SHARED:
            mixture = self.build(experts, names, dtype=dtype)
            _SHARED[made] = mixture, _state(mixture)
        mixture, state = _SHARED[made]
        assert _state(mixture) == state, f"an earlier test has changed the shared mixture {self}"
        return mixture


_SHARED: dict[object, tuple[MixtureModel, object]] = {}


def _state(mixture: MixtureModel) -> object:
    """Return what changes with a mixture's parameters, gradients, modes and hooks."""
    return (
        [
            (each.data_ptr(), each._version, each.grad is None, each.requires_grad)
            for each in mixture.parameters()
        ],
        [
            (each.training, len(each._forward_hooks), len(each._forward_pre_hooks))
            for each in mixture.modules()
        ],
    )


GENERATING_FEW = [
    Case("llama", "prompt"),  # what a mixture does unless told otherwise
    Case("t5", "prompt", "softmax", "parameter", "block"),
    Case("t5", "running", "sigmoid", scope="model"),
    Case("t5", "token", "top-1", "parameter", base_slot=True),
    Case("t5", "token", "top-k", base_slot=True),
    Case("llama", "prompt", "top-k", scope="block", base_slot=True),
    Case("llama", "prompt", "top-1", scope="model"),
    Case("llama", "running", "sigmoid"),
    Case("llama", "running", "softmax", "parameter", base_slot=True),
    Case("llama", "token", "sigmoid", "parameter", "block"),
    Case("gpt2", "prompt", "sigmoid", pooling="attention"),
    Case("gpt2", "running", "top-k", "parameter", "model"),
    Case("gpt2", "running", "top-1", scope="block", base_slot=True),
    Case("gpt2", "token", "softmax", scope="model", base_slot=True),
    Case("llama", "prompt", carry=True),
    Case("t5", "running", carry=True),
    Case("llama", "prompt", scope="block", first_pass=True, pooling="attention"),
    Case("t5", "prompt", "top-k", scope="block", first_pass=True),
]
REFERENCE_FEW = [
    Case("t5", "reference", "softmax", "parameter"),
    Case("llama", "reference", "top-1", scope="block", base_slot=True),
    Case("llama", "reference", "sigmoid", scope="model"),
    Case("gpt2", "reference", "top-k", "parameter", base_slot=True),
]
FEW = [*GENERATING_FEW, *REFERENCE_FEW]
PRODUCT = [Case(*choice) for choice in product(SHAPES, CONTEXTS, ACTIVATIONS, MIXING)]
SHARED = [
    Case(shape, context, scope=scope)
    for shape, context, scope in product(SHAPES, CONTEXTS, ["block", "model"])
]
WITH_BASE = [
    Case(shape, "token", activation, base_slot=True)
    for shape in SHAPES
    for activation in ("softmax", "top-1")
]
CARRYING = [
    Case(shape, context, carry=True)
    for shape, context in product(SHAPES, ["prompt", "running", "token"])
]
TOGETHER = [
    Case(shape, "prompt", activation, first_pass=True)
    for shape, activation in product(SHAPES, ACTIVATIONS)
]
ATTENDING = [
    Case(shape, "prompt", activation, pooling="attention")
    for shape, activation in product(SHAPES, ACTIVATIONS)
]
ALL = list(dict.fromkeys([*FEW, *PRODUCT, *SHARED, *WITH_BASE, *CARRYING, *TOGETHER, *ATTENDING]))
GENERATING = [
    case for case in ALL if case.context != "reference"
]  # the reference gate needs the whole target

# A claim about any input is tried on a tenth of the examples: each is a pass of a model.
some_examples = settings(max_examples=settings().max_examples // 10)


def in_turn(contexts: Iterable[str], activations: Sequence[str]) -> list[Case]:
    """Return a case for every shape and context; activations and ways of mixing take turns."""
    return [
        Case(
            shape,
            context,
            activations[index % len(activations)],
            MIXING[index // len(activations) % 2],
        )
        for index, (shape, context) in enumerate(product(SHAPES, contexts))
    ]


def over(cases: Iterable[Case], few: Iterable[Case] = FEW) -> pytest.MarkDecorator:
    """Run a test for each of these cases: by default for those among `few`, for all if slow tests
    are asked for.
    """
    quick = set(few)
    parameters = [
        pytest.param(case, id=str(case), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize("case", parameters)
