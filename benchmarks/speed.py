"""How fast a mixture generates, scores and trains, beside its base model and the other ways to use
several adapters.

    python benchmarks/speed.py                       all cases; about three quarters of an hour on
    two cores python benchmarks/speed.py --only "decode llama" the cases whose names begin so; may
    be given again python benchmarks/speed.py --dtype bfloat16 --device cuda

All systems of a case take turns in one process, so that noise hits all of them alike: compare
ratios, not seconds. Freed memory stays with the process (`KEPT`): else whoever is given new pages
pays for them, which may take longer than what is compared.
Written to the folder `--out`: speed.json with every round, speed.md with the tables and bars,
speed.png. Cases that lie there from an earlier run on such a machine, and are not run again, stay.
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

KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}  # as glibc reads them when a process starts
FOLDED, UNFOLDED = ", folded", ", not folded"
Timed = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One comparison: what is done, at which size, by whom, each with every number of experts."""

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
        made = f", {self.new} new" if self.new else ""
        return (
            f"{self.kind} {self.shape}, E={experts}, batch {self.batch}, {self.prompt} tokens{made}"
        )


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
    Case(
        "forward", "t5-small", ("base", "PEFT LoRA", "Arrow", "loramix"), (8,), batch=1, prompt=2048
    ),
    Case("training", "llama-135m", ("PEFT LoRA", "X-LoRA", "loramix"), (4,), batch=8, prompt=128),
    Case("training", "llama-135m", ("PEFT LoRA", "loramix"), (2,), batch=8, prompt=128),
    Case("training", "t5-small", ("PEFT LoRA", "loramix"), (2,), batch=8, prompt=128),
]


def work(case: Case, system: str, model: nn.Module, ids: Tensor) -> Timed:
    """Return what is timed: one generation, one forward pass, or one training step without its
    optimizer.
    """
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
    labels = (
        ids[:, :half].contiguous()
        if seq2seq
        else torch.cat([torch.full_like(ids[:, :half], -100), ids[:, half:]], 1)
    )
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
    folders = save_adapters(
        base, root / case.shape, min(16, max(case.experts))
    )  # a speed does not ask whose they are
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
    return [
        {
            **asdict(case),
            "case": case.name,
            "system": system,
            "experts": experts,
            "wall": wall,
            "cpu": cpu,
        }
        for (system, experts), turns in found.items()
        for wall, cpu in [tuple(map(list, zip(*turns, strict=True)))]
    ]


def main() -> None:
    """Measure, print and save."""
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEPT})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="beginning of the names of cases to run; may be given again"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    cases = [case for case in CASES if case.name.startswith(tuple(options.only or [""]))]
    if not cases:
        parser.error(
            f"no case begins with {options.only}; there are: "
            + "; ".join(case.name for case in CASES)
        )
    machine = {
        "device": options.device,
        "processor": platform.processor() or platform.machine(),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    file = options.out / "speed.json"
    earlier = (
        json.loads(file.read_text())
        if options.only and file.is_file()
        else {"machine": None, "rows": []}
    )
    again = {case.name for case in cases}
    kept = [
        row for row in earlier["rows"] if earlier["machine"] == machine and row["case"] not in again
    ]
    order = {case.name: place for place, case in enumerate(CASES)}
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as root:
        for place, case in enumerate(cases, 1):
            started = time.monotonic()
            rows += measured(
                case, options.rounds, getattr(torch, options.dtype), options.device, Path(root)
            )
            gc.collect()
            print(
                f"{place} of {len(cases)}: {case.name}, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
            )
            for row in rows:
                if row["case"] == case.name:
                    print(
                        f"    {row['system']:28} E={row['experts']:<4} "
                        f"{statistics.median(row['wall']):.3f} s",
                        file=sys.stderr,
                    )
            options.out.mkdir(parents=True, exist_ok=True)
            whole = sorted([*kept, *rows], key=lambda row: order.get(str(row["case"]), len(order)))
            file.write_text(json.dumps({"machine": machine, "rows": whole}, indent=1))
    print(write_report(options.out))


if __name__ == "__main__":
    main()
