"""Speed of a mixture in generation, scoring and training, beside its base and other mixtures.

    python benchmarks/speed.py                       all cases: 45 minutes on two cores
    python benchmarks/speed.py --only "decode llama" cases whose names begin so; repeatable
    python benchmarks/speed.py --dtype bfloat16 --device cuda

All systems of a case take turns in one process, so that all meet the same noise: compare ratios,
not seconds. Freed memory stays with the process (`KEPT`), or the first system to get new pages
would pay for them, which may take longer than the work that is compared.

Writes to the folder `--out`: speed.json with every round, speed.md with tables and bars, speed.png.
Cases from an earlier run on such a machine stay there until they are run again.
`python benchmarks/regression.py old/speed.json new/speed.json` compares two such files.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from speed_report import write_report
from speed_systems import SYSTEMS, base_model, save_adapters
from torch import Tensor, nn

from loramix import MixtureModel

# glibc reads these when a process starts.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
FOLDED, UNFOLDED = ", folded", ", not folded"
Timed = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One comparison: a kind of work on a shape, by systems with each number of experts."""

    kind: str
    shape: str
    systems: tuple[str, ...]
    experts: tuple[int, ...] = (2,)
    batch: int = 1
    prompt: int = 16
    new: int = 0

    @property
    def name(self) -> str:
        experts = "/".join(map(str, self.experts))
        new = f", {self.new} new" if self.new else ""
        size = f"E={experts}, batch {self.batch}, {self.prompt} tokens{new}"
        return f"{self.kind} {self.shape}, {size}"


COMMON = ("base", "PEFT LoRA", "PEFT active adapters", "Arrow", "reference layer", "loramix")
FEW = ("base", "PEFT LoRA", "loramix")
CASES = [
    Case("decode", "llama-135m", (*COMMON, "loramix" + UNFOLDED), batch=1, new=128),
    Case("decode", "llama-135m", COMMON, batch=8, new=64),
    Case("decode", "llama-135m", FEW, batch=1, prompt=1024, new=32),
    Case("decode", "llama-135m", FEW, batch=8, prompt=256, new=32),
    Case(
        "decode",
        "llama-135m",
        ("base", "X-LoRA", "Arrow", "reference layer", "loramix"),
        (4,),
        new=128,
    ),
    Case(
        "decode", "llama-135m", ("base", "PEFT active adapters", "Arrow", "loramix"), (8,), new=32
    ),
    Case("decode", "llama-135m", ("loramix",), (2, 8, 64), batch=8, new=32),
    Case("decode", "llama-135m", ("loramix top-2" + UNFOLDED,), (2, 4, 8, 16, 64, 256), new=64),
    Case("decode", "llama-135m", ("loramix top-2",), (2, 64, 256), new=64),
    Case("decode", "llama-135m", ("loramix top-2",), (2, 4, 8, 16, 64, 256), batch=8, new=64),
    *[
        Case("decode", shape, ("loramix" + UNFOLDED, "loramix" + FOLDED), new=new)
        for shape, lengths in (("llama-135m", (4, 8, 12, 16, 32)), ("t5-large", (4, 8, 12, 16)))
        for new in lengths
    ],
    Case("decode", "t5-small", COMMON, (4,), new=64),
    Case("decode", "t5-small", COMMON, (4,), batch=8, new=64),
    Case("decode", "t5-small", ("base", "Arrow", "loramix"), (4,), prompt=512, new=64),
    Case("decode", "t5-large", FEW, (2,), new=24),
    Case("decode", "t5-large", FEW, (8,), batch=8, new=8),
    Case(
        "forward",
        "llama-135m",
        ("base", "PEFT LoRA", "X-LoRA", "Arrow", "loramix"),
        (4,),
        batch=8,
        prompt=128,
    ),
    Case("forward", "llama-135m", ("loramix top-2",), (2, 16, 64), batch=1, prompt=128),
    Case("forward", "llama-135m", ("loramix", "loramix top-2"), (2, 20, 64), batch=1, prompt=256),
    Case(
        "forward",
        "llama-135m",
        ("base", "loramix", "loramix first pass", "loramix attending"),
        (20,),
        batch=1,
        prompt=256,
    ),
    Case(
        "forward", "t5-small", ("base", "PEFT LoRA", "Arrow", "loramix"), (8,), batch=1, prompt=2048
    ),
    Case("training", "llama-135m", ("PEFT LoRA", "X-LoRA", "loramix"), (4,), batch=8, prompt=128),
    Case("training", "llama-135m", ("PEFT LoRA", "loramix"), (2,), batch=8, prompt=128),
    Case("training", "llama-135m", ("loramix", "loramix top-2"), (2, 20, 64), batch=4, prompt=128),
    Case("training", "t5-small", ("PEFT LoRA", "loramix"), (2,), batch=8, prompt=128),
]


def work(case: Case, system: str, model: nn.Module, ids: Tensor) -> Timed:
    """Return one generation, one forward pass, or one training step without its optimizer."""
    mask = torch.ones_like(ids)
    settings = {"input_ids": ids, "attention_mask": mask}
    if case.kind == "decode":
        settings |= {"max_new_tokens": case.new, "min_new_tokens": case.new, "do_sample": False}
        if isinstance(model, MixtureModel):
            settings["fold"] = {UNFOLDED: False, FOLDED: True}.get(system[system.find(", ") :])
        return lambda: void(model.generate(**settings))
    seq2seq = model.config.is_encoder_decoder
    if case.kind == "forward":
        settings |= {"decoder_input_ids": ids[:, :16]} if seq2seq else {}
        return torch.inference_mode()(lambda: void(model(**settings)))
    model.train()
    half = ids.shape[1] // 2
    labels = ids[:, :half].contiguous()
    if not seq2seq:  # the first half of a row is the prompt
        labels = torch.cat([torch.full_like(labels, -100), ids[:, half:]], 1)
    trained = {"loramix": ".gate.", "X-LoRA": "xlora_classifier"}.get(system, "lora_")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)

    def step() -> None:
        model(**settings, labels=labels).loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


def void(_: object) -> None:
    """Drop a result, so that its memory is free before the next one's turn."""


def measured(
    case: Case, rounds: int, dtype: torch.dtype, device: str, root: Path
) -> list[dict[str, object]]:
    """Return the rounds of every system of a case."""
    base = base_model(case.shape, dtype).to(device)
    # Above 16 the same adapters serve again: speed does not depend on their numbers.
    folders = save_adapters(base, root / case.shape, min(16, max(case.experts)))
    torch.manual_seed(1)
    ids = torch.randint(5, 30_000, (case.batch, case.prompt), device=device)
    timed: dict[tuple[str, int], Timed] = {}
    for system in case.systems:
        for experts in case.experts:
            chosen = [folders[index % len(folders)] for index in range(experts)]
            model = SYSTEMS[system.partition(", ")[0]](base, chosen).to(device)
            timed[system, experts] = work(case, system, model, ids)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in timed}
    for turn in range(rounds + 1):
        for key, do in timed.items():
            started, used = time.perf_counter(), time.process_time()
            do()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                found[key].append((time.perf_counter() - started, time.process_time() - used))
    rows: list[dict[str, object]] = []
    for (system, experts), turns in found.items():
        wall, cpu = map(list, zip(*turns, strict=True))
        own = {"system": system, "experts": experts, "wall": wall, "cpu": cpu}
        rows.append({**asdict(case), "case": case.name, **own})
    return rows


def main() -> None:
    """Measure, print and save."""
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEPT})
    options = arguments()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    cases = [case for case in CASES if case.name.startswith(tuple(options.only or [""]))]
    machine = {
        "device": options.device,
        "processor": platform.processor() or platform.machine(),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    file = options.out / "speed.json"
    rows = earlier_rows(file, machine, cases) if options.only else []
    order = {case.name: index for index, case in enumerate(CASES)}
    with tempfile.TemporaryDirectory() as root:
        for index, case in enumerate(cases, 1):
            started = time.monotonic()
            dtype = getattr(torch, options.dtype)
            found = measured(case, options.rounds, dtype, options.device, Path(root))
            gc.collect()
            seconds = time.monotonic() - started
            print(f"{index} of {len(cases)}: {case.name}, {seconds:.0f} s", file=sys.stderr)
            for row in found:
                system = f"{row['system']:28} E={row['experts']:<4}"
                print(f"    {system} {statistics.median(row['wall']):.3f} s", file=sys.stderr)
            rows += found
            rows.sort(key=lambda row: order.get(str(row["case"]), len(order)))
            options.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    print(write_report(options.out))


def arguments() -> argparse.Namespace:
    """Return the options of the command line; ends the program if no case begins with `--only`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="beginning of case names; repeatable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    names = [case.name for case in CASES]
    if not any(name.startswith(tuple(options.only or [""])) for name in names):
        parser.error(f"no case begins with {options.only}; there are: {'; '.join(names)}")
    return options


def earlier_rows(
    file: Path, machine: dict[str, object], cases: list[Case]
) -> list[dict[str, object]]:
    """Return the rows of an earlier run on such a machine, without those of `cases`."""
    if not file.is_file():
        return []
    earlier = json.loads(file.read_text())
    again = {case.name for case in cases}
    if earlier["machine"] != machine:
        return []
    return [row for row in earlier["rows"] if row["case"] not in again]


if __name__ == "__main__":
    main()
