"""What a mixture of 1,000 experts on a base of 70B costs: counted, and reckoned from slopes.

    python benchmarks/on_paper.py [--slopes slopes.json]

Counted, from the modules that loramix would build, without their weights: parameters of the base,
of an adapter of rank 16 on q, k, v and o, and of the gates. Measured here, on a small base with the
proportions of the large one: how many times a mixture's pass costs that of its base, as a line over
the number of experts. Reckoned: the large one's times, as those of its base on the named machine
times that line. Times here are processor time of one thread, so that other work does not count.

--slopes: a file that keeps what was measured; read instead, if it exists.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from speed_systems import RANK, loramix, plain_base, save_adapters, targets
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from loramix import GateConfig
from loramix.config import Scope
from loramix.mixture.groups import roles
from loramix.mixture.linear import linear_shape
from loramix.mixture.wrapping import new_gates

EXPERTS = 1000
SIZES = (8, 32, 128)  # experts that slopes are measured over
ROUNDS, ROWS, LENGTH, NEW = 5, 8, 128, 16
PHASES = ("prefill", "decode", "gate training")
GATES = {"softmax": GateConfig(), "top-2": GateConfig(activation="top-k", k=2)}

# The machine: eight H100 of 80 GB, as their data sheet has them, and what is reached of it.
DEVICES, MEMORY, BANDWIDTH, PEAK = 8, 80e9, 3.35e12, 989e12
OF_BANDWIDTH, OF_PEAK = 0.7, 0.4
HOST = 50e9  # bytes a second from the host's memory to each device
BYTES = 2  # of a number in bfloat16
ADAMW = 16  # bytes of a trained number: itself, its gradient and two moments, in float32


class Counts(NamedTuple):
    """Parameters of the base and of one adapter; of the adapter, those that tensor parallelism
    copies to every device, as vLLM's own adapters do and as loramix's layers in vLLM do; and bytes
    of the cache for one token.
    """

    base: int
    adapter: int
    copied_by_vllm: int
    copied_by_loramix: int
    cache: int


def large_base() -> PreTrainedModel:
    """Return the base of 70B parameters, without its weights."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def small_base() -> PreTrainedModel:
    """Return a base with the same proportions between its layers, and random weights."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def shapes(base: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return the input and output widths of the adapted layers."""
    chosen = targets(base)
    found = {}
    for name, module in base.named_modules():
        if name.rpartition(".")[2] in chosen and (shape := linear_shape(module)):
            found[name] = shape
    return found


def counted(base: PreTrainedModel) -> Counts:
    """Count what a base and an adapter of it hold."""
    layers = shapes(base)
    adapter = sum(RANK * (wide + out) for wide, out in layers.values())
    # q, k and v are cut by columns, and need a whole lora_A; o by rows, and needs a whole lora_B
    rows = {name: name.endswith("o_proj") for name in layers}
    by_vllm = sum(RANK * (out if rows[name] else wide) for name, (wide, out) in layers.items())
    by_loramix = sum(RANK * (wide + rows[name] * out) for name, (wide, out) in layers.items())
    config = base.config
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cache = 2 * BYTES * heads * config.num_hidden_layers
    return Counts(base.num_parameters(), adapter, by_vllm, by_loramix, cache)


def gate_parameters(base: PreTrainedModel, scope: Scope, hidden: int) -> int:
    """Count the parameters of the gates of all experts."""
    planned = roles(base, set(shapes(base)), scope, None)
    with torch.device("meta"):
        gates = new_gates(base, planned, GateConfig(scope=scope, hidden=hidden), EXPERTS)
    return sum(each.numel() for gate in gates.values() for each in gate.parameters())


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a piece of work: the median of the rounds."""
    work()
    taken = []
    for _ in range(ROUNDS):
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    return statistics.median(taken)


def times(model: nn.Module, *, trains: bool) -> dict[str, float]:
    """Return the seconds of each phase; training costs a base what its forward pass costs."""
    prompts = torch.randint(3, 2048, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    labels = prompts.clone()
    labels[:, : LENGTH // 2] = -100  # the prompt, which gates read

    @torch.no_grad()
    def reads() -> None:
        model(input_ids=prompts)

    def writes() -> None:
        model.generate(
            input_ids=prompts[:, :8], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )

    def learns() -> None:
        model(input_ids=prompts, labels=labels).loss.backward()
        model.zero_grad()

    found = {"prefill": seconds(reads), "decode": seconds(writes)}
    if trains:
        model.train()
    found["gate training"] = seconds(learns) if trains else found["prefill"]
    model.eval()
    return found


def measured() -> dict[str, dict[str, list[float]]]:
    """Return by gate and phase how many times each size of a mixture costs its base."""
    torch.set_num_threads(1)
    base = small_base()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in GATES}
    with tempfile.TemporaryDirectory() as temporary:
        folders = save_adapters(base, Path(temporary), max(SIZES))
        alone = times(plain_base(base, folders), trains=False)
        for name, gate in GATES.items():
            for size in SIZES:
                mixed = times(loramix(gate, base, folders[:size]), trains=True)
                for phase in PHASES:
                    found[name].setdefault(phase, []).append(mixed[phase] / alone[phase])
                print(f"measured: {name}, {size} experts", flush=True)
    return found


def line(ratios: Sequence[float]) -> tuple[float, float]:
    """Return where a line through ratios over sizes begins, and how much an expert adds."""
    slope, begins = statistics.linear_regression(SIZES, ratios)
    return begins, slope


def dearness(ratios: Sequence[float], small: Counts) -> float:
    """Return what a parameter of an expert costs, in those of the base."""
    return line(ratios)[1] * small.base / small.adapter


def show_slopes(found: dict[str, dict[str, list[float]]], small: Counts) -> None:
    """Print what was measured."""
    print(
        f"\n| phase | gates | {' | '.join(f'E={size}' for size in SIZES)} | an expert adds |",
        end="",
    )
    print(" one of its parameters, in the base's |\n| --- | --- |" + " ---: |" * (len(SIZES) + 2))
    for phase in PHASES:
        for name in GATES:
            ratios = found[name][phase]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"| {phase} | {name} | {cells} | {line(ratios)[1]:.5f} | "
                f"{dearness(ratios, small):.2f} |"
            )


def show_memory(base: PreTrainedModel, counts: Counts) -> None:
    """Print what lies in memory, in all and on each device."""
    rows = [("base", counts.base * BYTES, counts.base * BYTES / DEVICES)]
    whole = EXPERTS * counts.adapter * BYTES
    for how, copied in (
        ("lora_A and lora_B both cut", 0),
        ("cut as vLLM does with its own", EXPERTS * counts.copied_by_vllm * BYTES),
        ("cut as by loramix in vLLM", EXPERTS * counts.copied_by_loramix * BYTES),
    ):
        rows.append((f"experts, {how}", whole, copied + (whole - copied) / DEVICES))
    scopes: tuple[tuple[Scope, int], ...] = (
        *(("layer", EXPERTS), ("layer", 64), ("block", EXPERTS), ("block", 64)),
        ("model", 64),
    )
    for scope, hidden in scopes:
        size = gate_parameters(base, scope, hidden) * BYTES
        where = "the model" if scope == "model" else f"every {scope}"
        rows.append((f"gates, one for {where}, {hidden} hidden units", size, size))
    rows.append(
        (
            "cache of 64 requests of 4,096 tokens",
            64 * 4096 * counts.cache,
            64 * 4096 * counts.cache / DEVICES,
        )
    )
    print("\n| in bfloat16 | GB in all | GB on each of 8 devices |\n| --- | ---: | ---: |")
    for name, everything, each in rows:
        print(f"| {name} | {everything / 1e9:.1f} | {each / 1e9:.1f} |")


def show_times(found: dict[str, dict[str, list[float]]], counts: Counts, small: Counts) -> None:
    """Print the reckoned times: those of the base, times the lines that were measured."""
    share = counts.adapter / counts.base  # of an expert
    flops = PEAK * OF_PEAK * DEVICES
    reading = BANDWIDTH * OF_BANDWIDTH * DEVICES
    base = {
        "prefill": ("prompt of 2,048 tokens", 2 * counts.base * 2048 / flops),
        "decode": ("token of 64 requests", BYTES * counts.base / reading),
        "gate training": ("step on 8 × 512 tokens", 2 * counts.base * 4096 / flops),
    }
    print("\n| one | base, ms | softmax, ms | times | top-2, ms | times |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for phase, (what, alone) in base.items():
        cells = []
        for name in GATES:
            ratios = found["softmax"][phase]
            # gates learn from what they leave out as well
            sparse = name == "top-2" and phase != "gate training"
            used = min(EXPERTS, 2 * (64 if phase == "decode" else 1)) if sparse else EXPERTS
            begins = statistics.fmean(found[name][phase]) if sparse else line(ratios)[0]
            times_base = begins + used * share * dearness(ratios, small)
            cells += [f"{1000 * alone * times_base:.0f}", f"{times_base:.2f}"]
        print(f"| {phase}: {what} | {1000 * alone:.0f} | {' | '.join(cells)} |")
    inner = EXPERTS * RANK * len(shapes(large_base())) * BYTES
    print(
        f"\nAn adapter has {counts.adapter / 1e6:.1f} million parameters, {1000 * share:.2f} "
        f"thousandths of the base; {EXPERTS} have {EXPERTS * share:.2f} times those of the base."
        f"\nWhat lora_A gives of one token is {inner / 1e6:.1f} MB in all layers: "
        f"{4096 * inner / 1e9:.0f} GB in a training step that keeps it."
        f"\nThe cache of a token is {counts.cache / 1e6:.2f} MB."
        f"\nA folded copy of the adapted weights is {folded():.0f} GB for each prompt."
        f"\nTraining {EXPERTS} adapters on 400,000 tokens each: "
        f"{EXPERTS * 4 * counts.base * 4e5 / flops / 3600:.0f} hours of such a machine."
        f"\nGates of every layer with {EXPERTS} hidden units take "
        f"{gate_parameters(large_base(), 'layer', EXPERTS) * ADAMW / 1e9:.0f} GB in training; of "
        f"every block with 64, {gate_parameters(large_base(), 'block', 64) * ADAMW / 1e9:.1f} GB."
        f"\nReading what loramix in vLLM keeps on a device takes "
        f"{1000 * EXPERTS * BYTES * on_device(counts) / (BANDWIDTH * OF_BANDWIDTH):.0f} ms."
        f"\nOne expert is {counts.adapter * BYTES / DEVICES / 1e6:.0f} MB on each device, "
        f"{1000 * counts.adapter * BYTES / DEVICES / HOST:.1f} ms from the host's memory."
    )


def on_device(counts: Counts) -> float:
    """Return the parameters of one expert that loramix's layers in vLLM keep on each device."""
    copied = counts.copied_by_loramix
    return copied + (counts.adapter - copied) / DEVICES


def folded() -> float:
    """Return the GB of the weights that adapters change."""
    return sum(wide * out for wide, out in shapes(large_base()).values()) * BYTES / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slopes", type=Path)
    kept: Path | None = parser.parse_args().slopes
    if kept is not None and kept.is_file():
        found = json.loads(kept.read_text())
    else:
        found = measured()
        if kept is not None:
            kept.write_text(json.dumps(found))
    base, small = large_base(), counted(small_base())
    counts = counted(base)
    show_slopes(found, small)
    show_memory(base, counts)
    show_times(found, counts, small)


if __name__ == "__main__":
    main()
