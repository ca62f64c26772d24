"""Tiny real models of the three shapes, adapters for them, and what is compared of both.

`conftest` imports this inside its fixtures only: a process of pytest that hands tests to others
needs no torch.
"""

import copy
import io
import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loramix import MixtureModel
from loramix.bases.tiny import tiny_model as tiny_base

VOCABULARY = 97


def tiny_model(shape: str) -> PreTrainedModel:
    """Return a random model of shape `t5`, `llama` or `gpt2`; a copy of the same one every time."""
    return _Copying(*_pickled(shape)).load()


class _Parting(pickle.Pickler):
    """Pickles a model without its tensors, which it collects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Copying(pickle.Unpickler):
    """Makes a copy of a pickled model: as `copy.deepcopy` does, in a fifth of its time."""

    def __init__(self, structure: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(structure))
        self.tensors, self.made = tensors, dict[int, object]()

    def persistent_load(self, index: int) -> torch.Tensor:
        return copy.deepcopy(self.tensors[index], self.made)  # tied weights stay tied


@cache
def _pickled(shape: str) -> tuple[bytes, list[torch.Tensor]]:
    file = io.BytesIO()
    pickler = _Parting(file)
    pickler.dump(_tiny_model(shape))
    return file.getvalue(), pickler.tensors


@cache
def _tiny_model(shape: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if shape == "t5":
            config = T5Config(
                vocab_size=VOCABULARY,
                d_model=32,
                d_kv=12,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=0,
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


TARGETS = {
    "t5": ["q", "k", "v", "o"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def save_expert(folder: Path, shape: str, *, seed: int, **settings: object) -> Path:
    """Save a strong random adapter with PEFT in `folder`, and return it."""
    defaults = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS[shape],
        "fan_in_fan_out": shape == "gpt2",
    }
    config = LoraConfig(**{**defaults, **settings})
    model = get_peft_model(tiny_model(shape), config)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (
                0.1 if shape == "t5" else 0.3
            )
    model.save_pretrained(folder)
    return folder


def save_given(
    folder: Path, *, seed: int = 1, base: str = "tiny-llama", **settings: object
) -> Path:
    """Save a random adapter of one of the tiny bases that recipes name, and return its folder."""
    defaults = {"r": 6, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    model = get_peft_model(tiny_base(base), LoraConfig(**{**defaults, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def strengthen(mixture: MixtureModel) -> MixtureModel:
    """Give the gates random parameters, so large that they tell inputs apart, and return the
    mixture.
    """
    generator = torch.Generator().manual_seed(3)
    wide = 4.0 if mixture.gate_config.context == "reference" else 1.0  # it reads its input unscaled
    for gate in mixture.gates.values():
        for linear, scale in ((gate.lift, 2.0 * wide), (gate.score, 4.0)):
            linear.weight.copy_(
                torch.randn(linear.weight.shape, generator=generator)
                * scale
                / linear.in_features**0.5
            )
            if linear.bias is not None:
                linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) / 2)
    return mixture.eval()


def peft_logits(shape: str, folder: Path, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the logits at the target's places of the tiny base with one adapter, served by
    PEFT; computed once for the same files and tokens.
    """
    files = tuple((file, file.stat().st_mtime_ns) for file in sorted(folder.iterdir()))
    asked = tuple(tuple(map(tuple, each.tolist())) for each in (ids, target))
    return _peft_logits(shape, folder, files, *asked).clone()


@cache
def _peft_logits(
    shape: str, folder: Path, files: object, ids: Sequence[object], target: Sequence[object]
) -> torch.Tensor:
    served = PeftModel.from_pretrained(tiny_model(shape), folder).eval()
    return target_logits(served, torch.tensor(ids), torch.tensor(target))


@torch.no_grad()
def target_logits(model: torch.nn.Module, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return what a model computes at the places of `target` after the prompt `ids`, in one
    pass.
    """
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, decoder_input_ids=target).logits
    given = {"input_ids": torch.cat([ids, target], 1)}
    if isinstance(model, MixtureModel):
        given["prompt_mask"] = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1).bool()
    return model(**given).logits[:, ids.shape[1] :]


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random ordinary tokens (rows, length)."""
    return torch.randint(
        3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def close(left: torch.Tensor, right: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> None:
    """Assert that two tensors are the same up to the rounding of `dtype`.

    Gates that tell random tokens apart (`strengthen`) enlarge float32's rounding to a few 1e-5, by
    how much the processor decides; what a wrong mask or context changes is above 1e-2.
    """
    exact = dtype == torch.float32
    torch.testing.assert_close(
        left, right, atol=1e-4 if exact else 2e-1, rtol=1e-3 if exact else 1e-1
    )
