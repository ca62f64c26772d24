"""Memory to load a large base, alone and with 8 experts, and to read 2,048 tokens.

    python benchmarks/memory.py

Every number comes from a fresh process (Linux), and is the median of the rounds. T5-large is loaded
from a float32 file as users do; in 8 bits only where bitsandbytes is installed. The adapters have
rank 16 on q, k, v and o.

Files are mapped into memory, so a process's memory has two parts: pages of files, which the system
takes back when it needs them, and the process's own. A second copy of the weights would show in the
latter.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from speed_systems import SYSTEMS, base_model, save_adapters
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from loramix import MixtureModel

ROUNDS, EXPERTS, TOKENS = 3, 8, 2048
FORMATS = (
    "float32",
    "bfloat16",
    *(("8 bits",) if importlib.util.find_spec("bitsandbytes") else ()),
)
READING = ("base", "PEFT LoRA", "Arrow", "loramix")


def loaded(variant: str, number_format: str, root: Path) -> dict[str, float]:
    """Return the peak memory of loading T5-large, alone or with experts, and of a short answer."""
    if hasattr(torch, number_format):
        settings = {"dtype": getattr(torch, number_format)}
    else:
        settings = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    before, own = status("RssAnon"), Peak(lambda: status("RssAnon"))
    model = T5ForConditionalGeneration.from_pretrained(root / "base", **settings)
    weights = sum(each.numel() * each.element_size() for each in model.parameters()) / 1e6
    if variant == "loramix":
        experts = {str(index): root / "t5-large" / str(index) for index in range(EXPERTS)}
        model = MixtureModel.from_experts(model, experts)
    model.eval().generate(input_ids=torch.randint(5, 30_000, (1, 16)), max_new_tokens=8)
    return {"whole": status("VmHWM"), "own": own.stop() - before, "weights": weights}


class Peak:
    """The largest value of a size of this process, read every two milliseconds until `stop`."""

    def __init__(self, size: Callable[[], float]) -> None:
        self._size, self._largest, self._done = size, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._largest = max(self._largest, self._size())

    def stop(self) -> float:
        """End the reading and return the largest value."""
        self._done.set()
        self._thread.join()
        return self._largest


def read(variant: str, root: Path) -> dict[str, float]:
    """Return the rise of memory while T5-small reads one row: in the pass and in every layer."""
    base = base_model("t5-small")
    model = SYSTEMS[variant](base, [root / "t5-small" / str(index) for index in range(EXPERTS)])
    ids = torch.randint(5, 30_000, (1, TOKENS))
    rises: dict[str, float] = {}
    with torch.inference_mode():
        # The first passes warm up; Arrow makes its prototypes in one.
        model(input_ids=ids[:, :16], decoder_input_ids=ids[:, :1])
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
        before = lowest()
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
        rises["pass"] = status("VmHWM") - before
        starts: dict[str, float] = {}
        for name, module in model.named_modules():
            own = name.removeprefix("base_model.model.").removeprefix("base.")
            if own.rpartition(".")[2] not in ("q", "k", "v", "o"):
                continue

            def start(*_: object, name: str = own) -> None:
                starts[name] = lowest()

            def end(*_: object, name: str = own) -> None:
                rises[name] = status("VmHWM") - starts[name]

            module.register_forward_pre_hook(start)
            module.register_forward_hook(end)
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
    return rises


def lowest() -> float:
    """Reset the record of this process's peak memory, and return the memory that it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> float:
    """Return a size of this process in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e6


def fresh(what: str, *arguments: str) -> dict[str, float]:
    """Return the medians of a measurement that is made in fresh processes."""
    command = [sys.executable, __file__, "--measure", what, *arguments]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # gives freed memory back at once
    found: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=exact)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    medians: dict[str, float] = {}
    for key in found[0]:
        medians[key] = statistics.median(each[key] for each in found)
    return medians


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = base_model("t5-large")
        base.save_pretrained(root / "base")
        adapters = save_adapters(base, root / "t5-large", EXPERTS)
        sizes = [(each / "adapter_model.safetensors").stat().st_size for each in adapters]
        experts = sum(sizes) / 1e6
        del base
        save_adapters(base_model("t5-small"), root / "t5-small", EXPERTS)
        show_loading(
            {(v, f): fresh("loaded", v, f, folder) for f in FORMATS for v in ("base", "loramix")},
            experts,
        )
        show_reading({variant: fresh("read", variant, folder) for variant in READING})


def show_loading(peaks: dict[tuple[str, str], dict[str, float]], experts: float) -> None:
    """Print the peak memory of processes that load T5-large and answer."""
    sizes = "weights, MB | own memory, MB | whole process, MB"
    print(f"| T5-large | format | {sizes} | to alone, without {experts:.0f} MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for (variant, number_format), peak in peaks.items():
        sizes = " | ".join(f"{peak[key]:.0f}" for key in ("weights", "own", "whole"))
        if variant == "base":
            print(f"| alone | {number_format} | {sizes} | |")
        else:
            share = (peak["whole"] - experts) / peaks["base", number_format]["whole"]
            print(f"| with {EXPERTS} experts | {number_format} | {sizes} | {share:.3f} |")
    share = (peaks["loramix", "float32"]["whole"] - experts) / peaks["base", "float32"]["whole"]
    what = f"float32 with {EXPERTS} experts, to alone, without the experts' own bytes"
    print(f"{what}: {bar(share, 1.15)}\n")


def show_reading(rises: dict[str, dict[str, float]]) -> None:
    """Print the rise of memory beyond the base's own."""
    base = rises["base"]
    title = f"T5-small, E={EXPERTS}, {TOKENS:,} tokens"
    print(f"| {title} | most in one layer, MB | in the whole pass, MB |")
    print("| --- | ---: | ---: |")
    print(f"| base | {_most(base):.1f} | {base['pass']:.1f} |")
    most: dict[str, float] = {}
    for variant in READING[1:]:
        extra = {key: rise - base[key] for key, rise in rises[variant].items()}
        most[variant] = _most(extra)
        print(f"| {variant}, beyond it | {most[variant]:.1f} | {extra['pass']:.1f} |")
    to_arrow = most["loramix"] / most["Arrow"]
    print(f"beyond the base in one layer, loramix to Arrow: {bar(to_arrow, 0.2)}")


def _most(rises: dict[str, float]) -> float:
    """Return the largest rise in one layer."""
    return max(rise for key, rise in rises.items() if key != "pass")


def bar(ratio: float, limit: float) -> str:
    """Return a ratio, its limit and whether it holds."""
    return f"{ratio:.3f}; at most {limit}: {'holds' if ratio <= limit else 'does not hold'}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bar()
    if options.measure:
        what, *arguments, root = options.measure
        print(json.dumps({"loaded": loaded, "read": read}[what](*arguments, root=Path(root))))
    else:
        main()
