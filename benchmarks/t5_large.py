"""One training step and one generation at T5-large size: seconds and peak memory.

    python benchmarks/t5_large.py

The model has the real configuration of T5-large and random weights, in float32; the adapters are
those of the recipe haiku-title-t5-large. A step is forward, backward and optimizer; generation is
cached and greedy. The second step is timed, as the first one warms up.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import finish, report
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Adafactor, T5Config, T5ForConditionalGeneration

from loramix import GateConfig, MixtureModel
from loramix.config import gates_from_prompts

VARIANTS = ("LoRA", "gates of two experts", "full finetune")
BATCH, INPUT, TARGET = 4, 256, 32


def t5_large() -> T5ForConditionalGeneration:
    """Return T5-large with random weights: 738 million parameters."""
    config = T5Config(
        d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config)


def lora() -> LoraConfig:
    """Return the reference's adapter: rank 16 and alpha 1 on q, k, v, o of all attention blocks."""
    return LoraConfig(
        r=16, lora_alpha=1, target_modules=["q", "k", "v", "o"], task_type="SEQ_2_SEQ_LM"
    )


def mixture() -> MixtureModel:
    """Return T5-large with two adapters and the gates of the recipe."""
    with torch.device("meta"):  # the adapters need the shapes of a base, not a second base
        config = T5Config(
            d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0
        )
        shapes = get_peft_model(T5ForConditionalGeneration(config), lora())
    with tempfile.TemporaryDirectory() as folder:
        shapes.to_empty(device="cpu")
        for name, parameter in shapes.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.02)
        shapes.save_pretrained(folder)
        del shapes
        experts: dict[str, str | Path] = {"haiku": folder, "title": folder}
        gate = GateConfig.model_validate(gates_from_prompts({"hidden": 4}))
        return MixtureModel.from_experts(t5_large(), experts, gate=gate)


def measured(variant: str) -> dict[str, float]:
    """Return the seconds of one training step and of one generation."""
    model = mixture() if variant == VARIANTS[1] else t5_large()
    if variant == "LoRA":
        model = get_peft_model(model, lora())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = (
        torch.optim.AdamW(trained, lr=3e-3)
        if variant == VARIANTS[1]
        else Adafactor(trained, lr=1e-3, scale_parameter=False, relative_step=False)
    )
    inputs: dict[str, Tensor] = {
        "input_ids": torch.randint(2, 32000, (BATCH, INPUT)),
        "attention_mask": torch.ones(BATCH, INPUT, dtype=torch.long),
    }
    labels = torch.randint(2, 32000, (BATCH, TARGET))
    model.train()
    for _ in range(2):
        started = time.monotonic()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step = time.monotonic() - started
    model.eval()
    started = time.monotonic()
    tokens = model.generate(**inputs, max_new_tokens=TARGET, min_new_tokens=TARGET, do_sample=False)
    assert tokens.shape == (BATCH, TARGET + 1)
    return {"step s": step, "generation s": time.monotonic() - started}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        finish(lambda: measured(options.variant))
    else:
        print(
            f"{BATCH} samples of {INPUT} input and {TARGET} target tokens, "
            f"{torch.get_num_threads()} threads"
        )
        report(__file__, VARIANTS, rounds=1)
