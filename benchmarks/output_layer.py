"""A training step whose output layer reads a slice, or one piece, as `load_base` arranges it.

    python benchmarks/output_layer.py

LoRA on the embedded default model, 8 samples of 20 prompt and 20 target tokens, logits for the
targets alone. Both variants take turns in one process. Prints the medians of the rounds and their
ratio.
"""

import statistics
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from loramix.bases.loading import load_base

ROUNDS, ROWS, TOKENS, TARGETS = 7, 8, 40, 20


def adapted(dtype: str, *, sliced: bool) -> PeftModel:
    """Return the model with an adapter; `sliced` lets its output layer read a slice."""
    model = load_base("smollm2-135m", dtype=dtype).model
    if sliced:
        model.get_output_embeddings()._forward_pre_hooks.clear()  # the hook of `load_base`
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return get_peft_model(model, LoraConfig(r=16, target_modules=targets))


def step(model: PeftModel, ids: torch.Tensor) -> float:
    """Return the seconds that one forward and backward pass takes."""
    started = time.perf_counter()
    model(input_ids=ids, labels=ids[:, -TARGETS - 1 :], logits_to_keep=TARGETS + 1).loss.backward()
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    ids = torch.randint(10, 40_000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    print(f"{'format':10} {'slice, s':>10} {'one piece, s':>14} {'ratio':>7}")
    for dtype in ("float32", "bfloat16"):
        models = {sliced: adapted(dtype, sliced=sliced) for sliced in (True, False)}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for sliced, model in models.items():
                seconds[sliced].append(step(model, ids))
        # The first round warms up.
        slow, fast = (statistics.median(seconds[sliced][1:]) for sliced in (True, False))
        print(f"{dtype:10} {slow:10.2f} {fast:14.2f} {slow / fast:6.2f}×")


if __name__ == "__main__":
    main()
