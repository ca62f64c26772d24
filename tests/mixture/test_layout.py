"""How a base calls its layers: in which order, and with tokens in which form."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, peft_logits, save_expert, strengthen, target_logits, tiny_model, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError
from loramix.mixture.layout import observe

Reshape = Callable[[Tensor], Tensor]


class Reshaped(nn.Module):
    """A feed-forward block that hands its layers tokens in another form."""

    def __init__(self, block: nn.Module, there: Reshape, back: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.up_proj, self.down_proj = block.up_proj, block.down_proj
        self.there, self.back = there, back

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.down_proj(self.up_proj(self.there(hidden)).relu())
        return self.back(inner, hidden)


FORMS = {
    "flat": (lambda x: x.flatten(0, 1), lambda y, x: y.view(x.shape)),
    "tokens-first": (lambda x: x.transpose(0, 1), lambda y, x: y.transpose(0, 1)),
    "flat-tokens-first": (
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda y, x: y.view(x.shape[1], x.shape[0], -1).transpose(0, 1),
    ),
}


def reshaped(form: str) -> PreTrainedModel:
    """Return a tiny Llama whose feed-forward layers read tokens in this form."""
    base = tiny_model("llama")
    for layer in base.model.layers:
        layer.mlp = Reshaped(layer.mlp, *FORMS[form])
    return base


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    targets = {"target_modules": ["up_proj", "down_proj"]}
    return {name: save_expert(tmp_path / name, "llama", seed=ord(name), **targets) for name in "ab"}


@pytest.mark.parametrize("context", ["prompt", "running", "token"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_tokens_is_mixed_row_by_row(
    form: str, context: str, folders: dict[str, Path]
) -> None:
    build = dict.fromkeys(("rows", form), MixtureModel.from_experts)
    config = GateConfig(context=context)
    plain = strengthen(build["rows"](reshaped("flat"), folders, gate=config))
    mixture = strengthen(build[form](reshaped(form), folders, gate=config))
    assert {layer.form for layer in mixture.layers.values()} == {form}
    ids, target = tokens(3, 6), tokens(3, 4, seed=1)
    together = target_logits(mixture, ids, target)
    close(together, target_logits(plain, ids, target))
    rows = [target_logits(mixture, ids[i : i + 1], target[i : i + 1]) for i in range(3)]
    close(together, torch.cat(rows))
    answers = [
        mixture.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*answers)


def test_flat_layers_take_weights_by_hand(folders: dict[str, Path]) -> None:
    mixture, ids = MixtureModel.from_experts(reshaped("flat"), folders), tokens(2, 5)
    with torch.no_grad():
        each = mixture(input_ids=ids, weights=[{"a": 1.0}, {"b": 0.5}]).logits
        for row, weights in enumerate(({"a": 1.0}, {"b": 0.5})):
            alone = mixture(input_ids=ids[row : row + 1], weights=weights).logits
            close(each[row : row + 1], alone)


def test_layers_that_read_some_tokens_are_refused_when_built(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    some = (lambda x: x.flatten(0, 1)[::2], lambda y, x: torch.zeros_like(x))
    base.model.layers[1].mlp = Reshaped(base.model.layers[1].mlp, *some)
    with pytest.raises(MixtureError, match=r"model\.layers\.1\.mlp.*not all tokens"):
        MixtureModel.from_experts(base, folders)
    assert not [name for name, _ in base.named_modules() if "gate" in name.split(".")]


def test_layers_that_text_never_reaches_are_refused_when_built(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    base.model.layers[1].mlp.forward = lambda x: x  # as a vision tower beside it
    with pytest.raises(MixtureError, match=r"never calls layer 'model\.layers\.1\.mlp"):
        MixtureModel.from_experts(base, folders)


@pytest.mark.parametrize("scope", ["block", "model"])
def test_shared_gates_read_at_the_layer_that_is_called_first(scope: str, tmp_path: Path) -> None:
    base = tiny_model("llama")
    attention = base.model.layers[0].self_attn
    modules = dict(attention._modules)
    for name in ("o_proj", "q_proj", "k_proj", "v_proj"):  # the last one called is registered first
        attention._modules.pop(name)
        attention._modules[name] = modules[name]
    folder = save_expert(tmp_path / "a", "llama", seed=1)
    mixture = strengthen(
        MixtureModel.from_experts(
            base, {"a": folder, "b": folder}, gate=GateConfig(context="token", scope=scope)
        )
    )
    assert next(iter(mixture.gates)) == "model.layers.0.self_attn.q_proj"
    ids, target = tokens(1, 4), tokens(1, 3)
    assert target_logits(mixture, ids, target).isfinite().all()
    with mixture.fixed({"b": 1.0}):
        close(target_logits(mixture, ids, target), peft_logits("llama", folder, ids, target))


def test_watching_a_base_changes_nothing_of_it() -> None:
    base = tiny_model("llama").train()
    base.model.layers[0].eval()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    calls = observe(base)
    assert calls is not None
    assert calls.layers["model.layers.0.self_attn.q_proj"].form == "rows"
    assert calls.states == ()
    assert base.model.layers[1].training
    assert not base.model.layers[0].training
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_a_base_that_needs_more_than_tokens_is_refused(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    base.model.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(
        MixtureError, match=r"cannot be called with tokens alone.*ZeroDivisionError"
    ):
        MixtureModel.from_experts(base, folders)
