"""Experts: what can be mixed, what is refused by name, and how a mixture gains and loses them."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import ACTIVATIONS, Case, Experts, over
from conftest import (
    close,
    peft_logits,
    save_expert,
    strengthen,
    target_logits,
    tiny_model,
    tokens,
)
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from loramix import GateConfig, MixtureModel
from loramix.errors import ExpertError, MixtureError
from loramix.storage.experts import LOSSY, load_expert

MakeExpert = Callable[..., Path]
ADDING = [
    Case(shape, context, activation, base_slot=activation == "softmax")
    for shape, context, activation in product(
        ["t5", "llama"], ["prompt", "token", "reference"], ACTIVATIONS
    )
]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)


def test_experts_may_differ_in_rank_scale_and_layers(make_expert: MakeExpert) -> None:
    folders = {
        "wide": make_expert("llama", "wide", seed=1, r=6, lora_alpha=3, use_rslora=True),
        "part of it": make_expert(
            "llama",
            "part",
            seed=2,
            r=2,
            target_modules=["q_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 3},
            alpha_pattern={"layers.1.self_attn.q_proj": 5},
        ),
        "mlp/…": make_expert("llama", "mlp", seed=3, target_modules="all-linear"),
    }
    mixture = strengthen(MixtureModel.from_experts(tiny_model("llama"), folders))
    for name, folder in folders.items():
        with mixture.fixed({name: 1.0}):
            close(target_logits(mixture, IDS, TARGET), peft_logits("llama", folder, IDS, TARGET))
    with pytest.raises(MixtureError, match="equal ranks"):
        MixtureModel.from_experts(tiny_model("llama"), folders, gate=GateConfig(mixing="parameter"))


@pytest.mark.parametrize(
    ("shape", "settings", "part"),
    [
        ("llama", {"use_dora": True}, "dora"),
        ("gpt2", {"bias": "lora_only"}, "bias"),
        ("llama", {"lora_bias": True}, "bias"),
        ("llama", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, "embeddings"),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ("llama", {"trainable_token_indices": [3, 4]}, "token_rows"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_mixed_is_refused_by_name_or_left_out_on_request(
    make_expert: MakeExpert, tmp_path: Path, shape: str, settings: dict[str, object], part: str
) -> None:
    folder = make_expert(shape, "odd", seed=1, **settings)
    with pytest.raises(
        ExpertError,
        match=rf"(?s){LOSSY[part].split('(')[0]}.*lossy=\['{part}'\]".replace("'s ", ".s "),
    ):
        MixtureModel.from_experts(tiny_model(shape), {"odd": folder})
    mixture = MixtureModel.from_experts(tiny_model(shape), {"odd": folder}, lossy=[part])
    assert mixture.experts[0].lossy == (part,)
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model(shape))
    assert again.experts[0].lossy == (part,)
    assert torch.equal(target_logits(again, IDS, TARGET), target_logits(mixture, IDS, TARGET))
    assert f"| odd | `{folder}` | {part} |" in (tmp_path / "saved" / "README.md").read_text()


def test_other_adapters_and_bases_are_refused(make_expert: MakeExpert, tmp_path: Path) -> None:
    folder = make_expert("llama", "a", seed=1)
    with pytest.raises(ExpertError, match="which this GPT2LMHeadModel does not have"):
        MixtureModel.from_experts(tiny_model("gpt2"), {"a": folder})
    with pytest.raises(ExpertError, match="it is no folder, and not in the local Hub cache"):
        MixtureModel.from_experts(tiny_model("gpt2"), {"a": "no/such/folder"})
    with pytest.raises(ExpertError, match=r"no part 'doora' \(did you mean 'dora'\?\)"):
        load_expert("a", folder, lossy=["doora"])
    wide = make_expert("llama", "wide", seed=1, target_modules=["gate_proj"])
    base = tiny_model("llama")
    base.model.layers[0].mlp.gate_proj = torch.nn.Linear(32, 48, bias=False)
    with pytest.raises(
        ExpertError, match=r"32 → 64, but the base model's layer is 32 → 48; .* another base"
    ):
        MixtureModel.from_experts(base, {"wide": wide})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ExpertError, match=r"holds no adapter_model\.safetensors"):
        load_expert("a", folder)


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter for the llama with layers that no other expert adapts."""
    folder = tmp_path_factory.mktemp("experts") / "wider"
    return save_expert(folder, "llama", seed=9, target_modules="all-linear")


@over(ADDING, few=ADDING[::3])
def test_a_new_expert_changes_no_answer_until_it_is_trained(
    experts: Experts, wider: Path, case: Case
) -> None:
    shape = case.shape
    mixture = case.build(experts, ("a", "b"))
    before = target_logits(mixture, IDS, TARGET)
    mixture.add_expert("new", experts("t5")["c"] if shape == "t5" else wider)
    assert mixture.expert_names == ["a", "b", "new"]
    close(target_logits(mixture, IDS, TARGET), before)
    trained = [parameter for parameter in mixture.parameters() if parameter.requires_grad]
    labels = TARGET if shape == "t5" else torch.cat([torch.full((2, 3), -100), IDS[:, 3:]], 1)
    mixture(input_ids=IDS, labels=labels).loss.backward()
    gradients = [gate.prior.grad[2] for gate in mixture.gates.values()]
    assert sum(float(gradient.abs()) for gradient in gradients) > 0
    torch.optim.SGD(trained, lr=1.0).step()
    if not case.config.sparse:  # those keep other experts until this one has learned more
        weights = mixture.weights(input_ids=IDS).values()
        assert max(float(weights_BE[..., 2].max()) for weights_BE in weights) > 0
    mixture.remove_expert("new")
    assert mixture.expert_names == ["a", "b"]


def test_removing_the_new_expert_restores_the_mixture(experts: Experts, wider: Path) -> None:
    folders = experts("llama", ("a", "b"))
    mixture = strengthen(MixtureModel.from_experts(tiny_model("llama"), folders))
    before, state = target_logits(mixture, IDS, TARGET), mixture.gate_state()
    mixture.add_expert("new", wider)
    mixture.remove_expert("new")
    assert torch.equal(target_logits(mixture, IDS, TARGET), before)
    assert all(torch.equal(value, state[key]) for key, value in mixture.gate_state().items())
    mixture.remove_expert("a")
    close(target_logits(mixture, IDS, TARGET), peft_logits("llama", folders["b"], IDS, TARGET))


def test_experts_that_do_not_fit_leave_the_mixture_as_it_was(make_expert: MakeExpert) -> None:
    folders = {name: make_expert("llama", name, seed=index) for index, name in enumerate("ab")}
    mixture = strengthen(
        MixtureModel.from_experts(
            tiny_model("llama"), folders, gate=GateConfig(mixing="parameter", scope="block")
        )
    )
    before = target_logits(mixture, IDS, TARGET)
    with pytest.raises(MixtureError, match="equal ranks"):
        mixture.add_expert("rank 2", make_expert("llama", "two", seed=3, r=2))
    with pytest.raises(ExpertError, match="does not have"):
        mixture.add_expert("gpt2", make_expert("gpt2", "gpt2", seed=3))
    with pytest.raises(MixtureError, match="an expert 'a' already"):
        mixture.add_expert("a", folders["b"])
    with pytest.raises(MixtureError, match="no expert 'z'"):
        mixture.remove_expert("z")
    assert torch.equal(target_logits(mixture, IDS, TARGET), before)
    mixture.remove_expert("a")
    with pytest.raises(MixtureError, match="only expert"):
        mixture.remove_expert("b")


def test_a_shared_gate_keeps_the_layer_that_it_reads(make_expert: MakeExpert) -> None:
    folders = {
        "q": make_expert("llama", "q", seed=1, target_modules=["q_proj"]),
        "v": make_expert("llama", "v", seed=2, target_modules=["v_proj"]),
    }
    mixture = MixtureModel.from_experts(
        tiny_model("llama"), folders, gate=GateConfig(scope="block")
    )
    with pytest.raises(MixtureError, match="made to read at"):
        mixture.remove_expert("q")
    assert mixture.expert_names == ["q", "v"]
    later = MixtureModel.from_experts(
        tiny_model("llama"), {"v": folders["v"]}, gate=GateConfig(scope="model")
    )
    with pytest.raises(MixtureError, match="scope='layer'"):
        later.add_expert("q", folders["q"])


class Int8Linear(torch.nn.Module):
    """A linear layer whose weight is whole numbers and a scale for each row, as quantisers keep
    it.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = (
            linear.in_features,
            linear.out_features,
            linear.bias,
        )
        self.scale = linear.weight.data.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter(
            (linear.weight.data / self.scale).round().to(torch.int8), requires_grad=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantised_in_code(folder: Path) -> PreTrainedModel:
    base = tiny_model("llama")
    for layer in base.model.layers:
        for name, module in layer.self_attn.named_children():
            setattr(layer.self_attn, name, Int8Linear(module))
    return base


def quantised_by_bitsandbytes(folder: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    tiny_model("llama").save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    ).eval()


@pytest.mark.parametrize("quantised", [quantised_in_code, quantised_by_bitsandbytes])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_quantised_base_is_only_called(
    make_expert: MakeExpert, tmp_path: Path, quantised: Callable[[Path], PreTrainedModel]
) -> None:
    folders = {name: make_expert("llama", name, seed=index) for index, name in enumerate("ab")}
    base, plain = quantised(tmp_path / "base"), quantised(tmp_path / "base")
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8
    mixture = strengthen(MixtureModel.from_experts(base, folders))
    with mixture.fixed({}):
        assert torch.equal(target_logits(mixture, IDS, TARGET), target_logits(plain, IDS, TARGET))
    exact = target_logits(
        strengthen(MixtureModel.from_experts(tiny_model("llama"), folders)), IDS, TARGET
    )
    assert float((target_logits(mixture, IDS, TARGET) - exact).abs().mean() / exact.std()) < 0.1
    labels = torch.cat([torch.full((2, 3), -100), IDS[:, 3:]], 1)
    mixture(input_ids=IDS, labels=labels).loss.backward()
    assert all(
        parameter.grad is not None for parameter in mixture.parameters() if parameter.requires_grad
    )
    with pytest.raises(MixtureError, match="quantised"):
        mixture.export(tmp_path / "no", weights={"a": 1.0}, merged=True)
    mixture.export(tmp_path / "adapter", weights={"a": 1.0})
    close(
        peft_logits("llama", tmp_path / "adapter", IDS, TARGET),
        peft_logits("llama", folders["a"], IDS, TARGET),
    )
