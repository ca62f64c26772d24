"""Tiny bases, and mixtures of them, for vLLM's CPU build: its attention needs heads of 32."""

from pathlib import Path

import torch
from conftest import strengthen
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from loramix import GateConfig, MixtureModel
from loramix.bases.tiny import tiny_tokenizer

_SIZE = 258
_WIDE = {
    "vocab_size": _SIZE,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GPT2 = {
    "vocab_size": _SIZE,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 1024,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_BLOOM = {"vocab_size": _SIZE, "hidden_size": 64, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
TARGETS = {
    "one-key": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "k_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bloom": ["query_key_value"],
}


def base(kind: str) -> PreTrainedModel:
    """Return a random base; the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**_WIDE)).eval()
        if kind == "bloom":
            return BloomForCausalLM(BloomConfig(**_BLOOM)).eval()
        if kind == "one-key":  # one head of keys and values, of which each process has a copy
            return LlamaForCausalLM(LlamaConfig(**{**_WIDE, "num_key_value_heads": 1})).eval()
        if kind == "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**_WIDE)).eval()
        return GPT2LMHeadModel(GPT2Config(**_GPT2)).eval()


def save_base(folder: Path, kind: str) -> Path:
    """Write a base with a tokenizer of bytes, and return its folder."""
    if not folder.exists():
        base(kind).save_pretrained(folder)
        tiny_tokenizer("tiny-llama").save_pretrained(folder)
    return folder


def save_adapter(folder: Path, source: Path, kind: str, *, seed: int, rank: int) -> Path:
    """Write a strong random adapter for a saved base, and return its folder."""
    config = LoraConfig(
        r=rank, lora_alpha=8, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source), config)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder)
    return folder


def save_mixture(root: Path, kind: str = "llama", **gate: object) -> MixtureModel:
    """Return a mixture of three experts whose gates tell inputs apart, saved as `root / mixture`.

    Ranks differ, unless matrices are mixed.
    """
    source = save_base(root / kind, kind)
    config = GateConfig(**gate)
    ranks = (4, 4, 4) if config.mixing == "parameter" else (4, 6, 3)
    experts = {
        name: save_adapter(root / name, source, kind, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(zip(("a", "b", "c"), ranks, strict=True))
    }
    mixture = strengthen(MixtureModel.from_experts(source, experts, gate=config))
    mixture.save_pretrained(root / "mixture")
    return mixture
