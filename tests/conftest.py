"""Tiny real models of the three shapes, and adapters for them, built in code."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # read when the libraries are imported

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 97


def tiny_model(shape: str) -> PreTrainedModel:
    """Return a random model of shape `t5`, `llama` or `gpt2`; the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if shape == "t5":
            config = T5Config(
                vocab_size=VOCABULARY, d_model=32, d_kv=12, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
            return T5ForConditionalGeneration(config).eval()
        if shape == "llama":
            llama = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            return LlamaForCausalLM(llama).eval()
        gpt2 = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return GPT2LMHeadModel(gpt2).eval()


TARGETS = {"t5": ["q", "k", "v", "o"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj"], "gpt2": ["c_attn", "c_proj"]}


@pytest.fixture
def make_expert(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a strong random adapter with PEFT and returns its folder."""

    def make(shape: str, name: str, *, seed: int, **settings: object) -> Path:
        defaults = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[shape], "fan_in_fan_out": shape == "gpt2"}
        config = LoraConfig(**{**defaults, **settings})
        model = get_peft_model(tiny_model(shape), config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * (0.1 if shape == "t5" else 0.3)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
