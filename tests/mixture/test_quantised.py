"""Quantised layers without a floating `weight`, built in code after those that PEFT serves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, strengthen, target_logits, tiny_model, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError
from loramix.storage.experts import Expert, load_expert

MakeExpert = Callable[..., Path]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)


def rounded(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return the weight as whole numbers in int8, and a scale for each row."""
    scale = linear.weight.data.abs().amax(1, keepdim=True) / 127
    return (linear.weight.data / scale).round().to(torch.int8), scale


class HQQLinear(nn.Module):
    """As in hqq: `W_q` and a dictionary of what it takes to read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        numbers, scale = rounded(linear)
        self.W_q = nn.Parameter(numbers, requires_grad=False)
        self.meta = {"scale": scale, "shape": tuple(numbers.shape)}
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.W_q * self.meta["scale"])


class GPTQLinear(nn.Module):
    """As in GPTQ: buffers, transposed, and widths under names of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.infeatures, self.outfeatures, self.bias = linear.in_features, linear.out_features, None
        numbers, scale = rounded(linear)
        self.register_buffer("qweight", numbers.T.contiguous().int())
        self.register_buffer("scales", scale.T)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.qweight * self.scales)


class AWQLinear(nn.Module):
    """As in AWQ: buffers, and no bias at all."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.w_bit = (
            linear.in_features,
            linear.out_features,
            8,
        )
        numbers, scale = rounded(linear)
        self.register_buffer("qweight", numbers.int())
        self.register_buffer("scales", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight * self.scales)


class QuantizedLinear(nn.Module):
    """As in AQLM: codes that point into codebooks."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        numbers, scale = rounded(linear)
        self.codes = nn.Parameter(numbers.int() + 127, requires_grad=False)
        self.codebooks = nn.Parameter(torch.arange(-127.0, 128.0), requires_grad=False)
        self.scales = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codebooks[self.codes] * self.scales)


def quantised(kind: Callable[[nn.Linear], nn.Module]) -> PreTrainedModel:
    """Return the tiny model with quantised attention."""
    base = tiny_model("llama")
    for layer in base.model.layers:
        for name, module in layer.self_attn.named_children():
            setattr(layer.self_attn, name, kind(module))
    return base


def add_update(base: PreTrainedModel, expert: Expert) -> PreTrainedModel:
    """Add an expert's update to what its layers return."""
    for layer, update in expert.updates.items():

        def add(module, args, output, update=update):  # type: ignore[no-untyped-def]
            return output + update.scale * (args[0] @ update.down_RD.T) @ update.up_OR.T

        base.get_submodule(layer).register_forward_hook(add)
    return base


@pytest.mark.parametrize("kind", [HQQLinear, GPTQLinear, AWQLinear, QuantizedLinear])
def test_layers_without_a_weight_are_served_exactly(
    make_expert: MakeExpert, tmp_path: Path, kind: Callable[[nn.Linear], nn.Module]
) -> None:
    folders = {name: make_expert("llama", name, seed=index) for index, name in enumerate("ab")}
    mixture = strengthen(MixtureModel.from_experts(quantised(kind), folders))
    for name, folder in folders.items():
        alone = add_update(quantised(kind), load_expert(name, folder))
        with mixture.fixed({name: 1.0}):
            close(target_logits(mixture, IDS, TARGET), target_logits(alone, IDS, TARGET))
    answer = mixture.generate(IDS, max_new_tokens=4, min_new_tokens=4)
    uncached = mixture.generate(IDS, max_new_tokens=4, min_new_tokens=4, use_cache=False)
    assert torch.equal(answer, uncached)
    with pytest.raises(MixtureError, match="quantised"):
        mixture.export(tmp_path / "merged", weights={"a": 1.0}, merged=True)


def test_gates_of_layers_without_a_weight_are_trained(make_expert: MakeExpert) -> None:
    folders = {name: make_expert("llama", name, seed=index) for index, name in enumerate("ab")}
    gate = GateConfig(context="token")
    mixture = strengthen(MixtureModel.from_experts(quantised(HQQLinear), folders, gate=gate))
    mixture(input_ids=IDS, labels=IDS).loss.backward()
    assert all(each.grad is not None for each in mixture.parameters() if each.requires_grad)
