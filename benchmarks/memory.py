"""Memory: what 8 experts take beside T5-large, and what layers take to read 2,048 tokens with Arrow and loramix.

    python benchmarks/memory.py

Every number comes from a fresh process (Linux), and is the median of the rounds. The base model is loaded from a file,
as users do. The adapters have rank 16 on q, k, v and o.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from speed_systems import SYSTEMS, base_model, save_adapters
from transformers import T5ForConditionalGeneration

from loramix import MixtureModel

ROUNDS, EXPERTS, TOKENS = 3, 8, 2048
LOADING, READING = ("base", "loramix"), ("base", "PEFT LoRA", "Arrow", "loramix")


def loaded(variant: str, root: Path) -> float:
    """Load T5-large, with its experts or without, answer a short prompt, and return this process's peak memory."""
    model = T5ForConditionalGeneration.from_pretrained(root / "base", dtype=torch.float32)
    if variant == "loramix":
        model = MixtureModel.from_experts(model, {str(i): root / "t5-large" / str(i) for i in range(EXPERTS)})
    model.eval().generate(input_ids=torch.randint(5, 30_000, (1, 16)), max_new_tokens=8)
    return status("VmHWM")


def read(variant: str, root: Path) -> dict[str, float]:
    """Return how far memory rises while T5-small reads one row of tokens: in the whole pass, and in every layer."""
    base = base_model("t5-small")
    model = SYSTEMS[variant](base, [root / "t5-small" / str(index) for index in range(EXPERTS)])
    ids = torch.randint(5, 30_000, (1, TOKENS))
    rises: dict[str, float] = {}
    with torch.inference_mode():
        model(input_ids=ids[:, :16], decoder_input_ids=ids[:, :1])  # Arrow makes its prototypes, and so on
        watched = [(name, module) for name, module in model.named_modules() if name.split(".")[-1] in ("q", "k", "v", "o")]
        reading = model(input_ids=ids, decoder_input_ids=ids[:, :16])
        del reading
        before = lowest()
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
        rises["whole pass"] = status("VmHWM") - before
        starts: dict[str, float] = {}
        for name, module in watched:
            own = name.removeprefix("base_model.model.").removeprefix("base.")

            def start(*_: object, name: str = own) -> None:
                starts[name] = lowest()

            def end(*_: object, name: str = own) -> None:
                rises[name] = status("VmHWM") - starts[name]

            module.register_forward_pre_hook(start)
            module.register_forward_hook(end)
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
    return rises


def lowest() -> float:
    """Start the record of this process's peak memory anew, and return what it takes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> float:
    """Return a size of this process in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e6


def fresh(what: str, variant: str, root: Path) -> float:
    """Return the median of what processes of their own measure."""
    command = [sys.executable, __file__, "--measure", what, variant, str(root)]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=exact) for _ in range(ROUNDS)]
    return statistics.median(json.loads(run.stdout.splitlines()[-1]) for run in runs)


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = base_model("t5-large")
        base.save_pretrained(root / "base")
        adapters = save_adapters(base, root / "t5-large", EXPERTS)
        own = sum((each / "adapter_model.safetensors").stat().st_size for each in adapters) / 1e6
        del base
        save_adapters(base_model("t5-small"), root / "t5-small", EXPERTS)
        peaks = {variant: fresh("loaded", variant, root) for variant in LOADING}
        rises = {variant: fresh("read", variant, root) for variant in READING}
    share = (peaks["loramix"] - own) / peaks["base"]
    print(
        f"T5-large, peak of a process: alone {peaks['base']:.0f} MB; with {EXPERTS} experts {peaks['loramix']:.0f} MB"
    )
    print(f"without the experts' own {own:.0f} MB: {share:.3f} x alone; at most 1.15: {verdict(share <= 1.15)}\n")
    print(f"| T5-small, E={EXPERTS}, {TOKENS:,} tokens | rise of memory, MB | beyond the base, MB |")
    print("| --- | ---: | ---: |")
    for variant, rise in rises.items():
        print(f"| {variant} | {rise:.1f} | {rise - rises['base']:.1f} |")
    extra = {variant: rise - rises["base"] for variant, rise in rises.items()}
    if extra["Arrow"] < 1:
        print("Arrow adds nothing to the peak of the whole pass, so its share is no measure here")
    else:
        part = extra["loramix"] / extra["Arrow"]
        print(f"beyond the base, loramix to Arrow: {part:.3f}; at most 0.2: {verdict(part <= 0.2)}")


def verdict(holds: bool) -> str:
    """Return it in words."""
    return "holds" if holds else "does not hold"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    if options.measure:
        what, variant, root = options.measure
        print(json.dumps({"loaded": loaded, "read": read}[what](variant, Path(root))))
    else:
        main()
