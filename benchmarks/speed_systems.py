"""The systems that `speed.py` compares, all over one base model, whose memory they share.

Weights are random, in the real configurations; speed does not depend on them. Every adapter has
rank 16 on q, k, v and o of every attention block.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft import ArrowConfig, LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loramix import GateConfig, MixtureModel

SHAPES = ("llama-135m", "t5-small", "t5-large")
RANK = 16
Build = Callable[[PreTrainedModel, list[Path]], nn.Module]


def base_model(shape: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a random model of the shape of SmolLM2-135M, T5-small or T5-large."""
    torch.manual_seed(0)
    common = {"pad_token_id": 0, "eos_token_id": 1, "dtype": dtype}
    if shape == "llama-135m":
        config = LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            bos_token_id=1,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            **common,
        )
        return LlamaForCausalLM(config).to(dtype).eval()
    size = {
        "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    }[shape]
    config = T5Config(decoder_start_token_id=0, **size, **common)
    return T5ForConditionalGeneration(config).to(dtype).eval()


def targets(base: PreTrainedModel) -> list[str]:
    """Return the names of the projections that adapters change."""
    if base.config.is_encoder_decoder:
        return ["q", "k", "v", "o"]
    return ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora_config(base: PreTrainedModel) -> LoraConfig:
    """Return the settings of one adapter."""
    kind = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets(base), task_type=kind)


def save_adapters(base: PreTrainedModel, root: Path, count: int) -> list[Path]:
    """Save `count` random adapters for this base, unless they exist, and return their folders."""
    model = get_peft_model(twin(base), lora_config(base))
    folders = [root / str(index) for index in range(count)]
    for index, folder in enumerate(folders):
        if not folder.exists():
            torch.manual_seed(index)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(parameter, std=0.02)
            model.save_pretrained(folder)
    return folders


def twin(base: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model with the same parameters, not copies of them."""
    return copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})


def plain_base(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return the base model itself."""
    return twin(base).requires_grad_(False)


def peft_lora(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return PEFT with one adapter."""
    return PeftModel.from_pretrained(twin(base), folders[0]).eval()


def peft_active(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return PEFT with all adapters active: their sum, by a loop over adapters in every layer."""
    model = PeftModel.from_pretrained(twin(base), folders[0], adapter_name="0")
    for index, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(index))
    model.base_model.set_adapter([str(index) for index in range(len(folders))])
    return model.eval()


def arrow(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return PEFT's Arrow: two adapters for every token, chosen by prototypes."""
    config = ArrowConfig(top_k=2, router_temperature=1.0, rng_seed=0)
    return create_arrow_model(twin(base), [str(folder) for folder in folders], config).eval()


def xlora(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return PEFT's X-LoRA, which uses no cache and passes through the base twice."""
    model = twin(base)
    model.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=model.config.hidden_size,
        xlora_depth=1,
        layerwise_scalings=False,
        adapters={str(index): str(folder) for index, folder in enumerate(folders)},
    )
    return get_peft_model(model, config).eval()


def loramix(gate: GateConfig, base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return a mixture with this gate."""
    experts: dict[str, str | Path] = {
        f"expert-{index}": folder for index, folder in enumerate(folders)
    }
    mixture = MixtureModel.from_experts(twin(base), experts, gate=gate)
    torch.manual_seed(0)
    for gate_module in mixture.gates.values():
        # With zeros, top-k would choose the same experts everywhere.
        nn.init.normal_(gate_module.score.weight)
    return mixture.eval()


def reference(base: PreTrainedModel, folders: list[Path]) -> nn.Module:
    """Return the reference's layers, transcribed: see `ReferenceLayer`."""
    mixture, model = loramix(GateConfig(), base, folders), twin(base).requires_grad_(False)
    for name in mixture.layers:
        parent, _, attribute = name.rpartition(".")
        updates = [expert.updates[name] for expert in mixture.experts]
        layer = ReferenceLayer(
            model.get_submodule(name), [(u.down_RD, u.up_OR) for u in updates], updates[0].scale
        )
        setattr(model.get_submodule(parent), attribute, layer)
    return model.eval()


class ReferenceLayer(nn.Module):
    """The reference's layer: experts in lists, A and B mixed separately, a mean over the batch."""

    def __init__(self, base: nn.Linear, experts: list[tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.downs = nn.ParameterList(
            nn.Parameter(down.clone(), requires_grad=False) for down, _ in experts
        )
        self.ups = nn.ParameterList(
            nn.Parameter(up.clone(), requires_grad=False) for _, up in experts
        )
        self.lift = nn.Linear(base.in_features, 4, bias=False)
        self.score = nn.Linear(4, len(experts), bias=False)
        self.weight = base.weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the base's output plus s · B A x for the mixed B and A."""
        scores_BTE = self.score(self.lift(x_BTD.float()).relu())
        weights_E = scores_BTE.mean(1).softmax(-1).mean(0).to(x_BTD.dtype)
        down_RD, up_OR = torch.zeros_like(self.downs[0]), torch.zeros_like(self.ups[0])
        for weight, down, up in zip(weights_E, self.downs, self.ups, strict=True):
            down_RD, up_OR = down_RD + weight * down, up_OR + weight * up
        low_BTR = nn.functional.linear(x_BTD, down_RD.to(x_BTD))
        update_BTO = nn.functional.linear(low_BTR, up_OR.to(x_BTD))
        return self.base(x_BTD) + self.scale * update_BTO


SYSTEMS: dict[str, Build] = {
    "base": plain_base,
    "PEFT LoRA": peft_lora,
    "PEFT active adapters": peft_active,
    "Arrow": arrow,
    "X-LoRA": xlora,
    "reference layer": reference,
    "loramix": partial(loramix, GateConfig()),
    "loramix top-2": partial(loramix, GateConfig(activation="top-k")),
    "loramix first pass": partial(loramix, GateConfig(first_pass=True)),
    "loramix attending": partial(
        loramix, GateConfig(first_pass=True, pooling="attention", scope="block")
    ),
}
