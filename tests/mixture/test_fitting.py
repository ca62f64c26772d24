"""An expert on its base: one expert alone is what PEFT serves for that adapter, or is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TARGETS, close, peft_logits, target_logits, tiny_model, tokens
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from loramix import MixtureModel
from loramix.errors import ExpertError

MakeExpert = Callable[..., Path]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)
WEIGHTS = "adapter_model.safetensors"


def alone(base: PreTrainedModel, folder: Path, **options: object) -> torch.Tensor:
    """Return the logits of a mixture in which this adapter has weight 1."""
    mixture = MixtureModel.from_experts(base, {"one": folder}, **options)
    with mixture.fixed({"one": 1.0}):
        return target_logits(mixture, IDS, TARGET)


def change(folder: Path, changed: Callable[[dict[str, torch.Tensor]], dict]) -> Path:
    save_file(changed(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


# PiSSA and OLoRA


def trained(folder: Path, shape: str, **settings: object) -> torch.Tensor:
    """Save an adapter after a few steps of training, and return the trained model's logits."""
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[shape]}
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(shape), LoraConfig(**{**defaults, "fan_in_fan_out": shape == "gpt2", **settings})
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return target_logits(model.eval(), IDS, TARGET)


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA:UserWarning")
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("llama", {"init_lora_weights": "pissa"}),
        ("llama", {"init_lora_weights": "olora"}),
        ("t5", {"init_lora_weights": "pissa"}),
        ("gpt2", {"init_lora_weights": "pissa"}),
        # PEFT's OLoRA fits transposed layers only where they are square
        ("gpt2", {"init_lora_weights": "olora", "target_modules": ["attn.c_proj"]}),
        (
            "llama",
            {
                "init_lora_weights": "pissa",
                "use_rslora": True,
                "target_modules": "all-linear",
                "rank_pattern": {"down_proj": 3},
                "alpha_pattern": {"q_proj": 5},
            },
        ),
    ],
)
def test_adapters_that_changed_the_base_are_the_trained_model(
    tmp_path: Path, shape: str, settings: dict[str, object]
) -> None:
    truth = trained(tmp_path / "one", shape, **settings)
    close(peft_logits(shape, tmp_path / "one", IDS, TARGET), truth)
    close(alone(tiny_model(shape), tmp_path / "one"), truth)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_such_experts_mix_add_save_and_export_like_others(
    make_expert: MakeExpert, tmp_path: Path, start: str
) -> None:
    truth = trained(tmp_path / "one", "llama", init_lora_weights=start)
    plain = make_expert("llama", "plain", seed=1)
    mixture = MixtureModel.from_experts(tiny_model("llama"), {"plain": plain})
    mixture.add_expert("one", tmp_path / "one")
    with mixture.fixed({"one": 1.0}):
        close(target_logits(mixture, IDS, TARGET), truth)
    with mixture.fixed({}):
        base = target_logits(mixture, IDS, TARGET)
    close(base, target_logits(tiny_model("llama"), IDS, TARGET))
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=tiny_model("llama"))
    assert torch.equal(target_logits(again, IDS, TARGET), target_logits(mixture, IDS, TARGET))
    mixture.export(tmp_path / "export", weights={"one": 1.0})
    close(peft_logits("llama", tmp_path / "export", IDS, TARGET), truth)


def test_such_experts_need_the_numbers_of_the_base(tmp_path: Path) -> None:
    trained(tmp_path / "one", "llama", init_lora_weights="pissa")
    base = tiny_model("llama")
    weight = base.model.layers[0].self_attn.q_proj.weight
    base.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(
        weight.to(torch.int8), requires_grad=False
    )
    with pytest.raises(ExpertError, match=r"'pissa'.*are quantised; load the base in float32"):
        MixtureModel.from_experts(base, {"one": tmp_path / "one"})


# Renamed layers and fused experts


def llava() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(**sizes, vocab_size=97, num_attention_heads=4),
        vision_config=CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=16, patch_size=8),
        image_token_index=96,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlavaForConditionalGeneration(config).eval()


def mixture_of_experts() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=97,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Qwen3MoeForCausalLM(config).eval()


def save_strong(base: PreTrainedModel, folder: Path, **settings: object) -> Path:
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, **settings))
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder)
    return folder


def test_layers_that_transformers_renamed_are_those_of_peft(tmp_path: Path) -> None:
    """An adapter of transformers 4, where the language model lay beside the vision tower."""
    targets = r".*language_model.*\.(q_proj|v_proj)"
    folder = save_strong(
        llava(), tmp_path / "one", target_modules=targets, alpha_pattern={r".*v_proj": 3}
    )
    new = "base_model.model.model.language_model."
    old = "base_model.model.language_model.model."
    change(folder, lambda state: {key.replace(new, old): value for key, value in state.items()})
    truth = target_logits(PeftModel.from_pretrained(llava(), folder).eval(), IDS, TARGET)
    close(alone(llava(), folder), truth)


def of_version_4(folder: Path) -> Path:
    """Save what PEFT wrote on transformers 4, where every expert had linear layers of its own."""
    shapes = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
    generator, state = torch.Generator().manual_seed(5), {}
    names = [
        (f"mlp.experts.{number}.{name}", shape)
        for number in range(4)
        for name, shape in shapes.items()
    ]
    for layer in range(2):
        for name, (wide, out) in [("self_attn.q_proj", (32, 32)), *names]:
            key = f"base_model.model.model.layers.{layer}.{name}"
            state[f"{key}.lora_A.weight"] = torch.randn(4, wide, generator=generator)
            state[f"{key}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    folder.mkdir()
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", *shapes]).save_pretrained(str(folder))
    save_file(state, folder / WEIGHTS)
    return folder


def of_parameters(folder: Path) -> Path:
    return save_strong(
        mixture_of_experts(),
        folder,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )


@pytest.mark.parametrize("save", [of_version_4, of_parameters])
def test_updates_of_fused_experts_are_refused_as_what_they_are(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    folder = save(tmp_path / "one")
    with pytest.raises(
        ExpertError, match=r"fused expert weights or their router.*lossy=\['target_parame"
    ):
        alone(mixture_of_experts(), folder)
    mixture = MixtureModel.from_experts(
        mixture_of_experts(), {"one": folder}, lossy=["target_parameters"]
    )
    assert {layer.rpartition(".")[2] for layer in mixture.experts[0].updates} == {"q_proj"}
    mixture.save_pretrained(tmp_path / "saved")
    again = MixtureModel.from_pretrained(tmp_path / "saved", base=mixture_of_experts())
    assert torch.equal(target_logits(again, IDS, TARGET), target_logits(mixture, IDS, TARGET))


def test_a_parameter_that_is_a_linear_layers_weight_is_mixed(tmp_path: Path) -> None:
    folder = save_strong(
        tiny_model("llama"),
        tmp_path / "one",
        target_modules=[],
        target_parameters=["q_proj.weight", "up_proj.weight"],
    )
    close(alone(tiny_model("llama"), folder), peft_logits("llama", folder, IDS, TARGET))


def test_what_is_no_linear_layer_is_named(make_expert: MakeExpert) -> None:
    folder = make_expert("llama", "one", seed=1)
    base = tiny_model("llama")
    for module in (torch.nn.Identity(), torch.nn.MultiheadAttention(32, 4)):
        base.model.layers[0].self_attn.q_proj = module
        kind = type(module).__name__
        with pytest.raises(ExpertError, match=rf"q_proj', a {kind}, which is no linear layer"):
            alone(base, folder)


# Whole matrices of a vocabulary


def resized(rows: int = 100, seed: int = 11) -> PreTrainedModel:
    base = tiny_model("llama")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base.resize_token_embeddings(rows, mean_resizing=False)
    return base.eval()


@pytest.fixture
def with_vocabulary(tmp_path: Path) -> Path:
    folder = save_strong(resized(), tmp_path / "one", target_modules=TARGETS["llama"])
    table = resized().get_input_embeddings().weight.detach()
    output = resized().get_output_embeddings().weight.detach()
    return change(
        folder,
        lambda state: {
            **state,
            "base_model.model.model.embed_tokens.weight": table.clone(),
            "base_model.model.lm_head.weight": output.clone(),
        },
    )


def test_a_vocabulary_like_the_base_has_is_accepted(with_vocabulary: Path) -> None:
    truth = target_logits(PeftModel.from_pretrained(resized(), with_vocabulary), IDS, TARGET)
    close(alone(resized(), with_vocabulary), truth)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (lambda: tiny_model("llama"), r"100 rows, and the base has 97"),
        (lambda: resized(seed=12), "with other numbers"),
    ],
)
def test_another_vocabulary_is_refused_or_left_out_on_request(
    with_vocabulary: Path, base: Callable[[], PreTrainedModel], words: str
) -> None:
    with pytest.raises(
        ExpertError, match=rf"resized vocabulary.*embed_tokens.*{words}.*lossy=\['vocabulary'\]"
    ):
        alone(base(), with_vocabulary)
    alone(base(), with_vocabulary, lossy=["vocabulary"])


def test_a_whole_weight_of_another_layer_is_no_vocabulary(make_expert: MakeExpert) -> None:
    folder = make_expert("llama", "one", seed=1)
    key = "base_model.model.model.norm.weight"
    change(folder, lambda state: {**state, key: torch.ones(32)})
    with pytest.raises(ExpertError, match=f"'{key}' of shape .32., a whole weight"):
        alone(tiny_model("llama"), folder)
