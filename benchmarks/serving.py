"""Serving many at once: the embedded engine beside other ways to answer the same requests.

    python benchmarks/serving.py                 tokens/s and time to first token, in rounds
    python benchmarks/serving.py --only engine   and one by one, the other ways left out

Requests of mixed length, with random tokens, on the embedded default with three random adapters.
The ways take turns in one process. `processor` counts what all threads of the process computed,
which other work on the machine changes less than the clock.

    one by one     `MixtureModel.generate` for each, in turn; for a quarter of the requests
    static         `MixtureModel.generate` for N at a time, padded; a batch ends with its last row
    engine         N requests in flight
    engine, base   the same engine over the base without experts and gates
"""

import argparse
import gc
import queue
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from speed_systems import save_adapters
from torch import nn

from loramix import GateConfig, MixtureModel
from loramix.bases.loading import load_base
from loramix.mixture.cache import Carried, carry
from loramix.mixture.state import current
from loramix.mixture.weights import RoutingWeights
from loramix.serving.engine import Engine
from loramix.serving.jobs import End, Event, Job, Limits, Piece, Sampling

PROMPTS, NEW, REQUESTS, ROUNDS = (16, 32, 64, 200), (8, 48), 48, 3
AT_ONCE = (1, 4, 16)


@dataclass
class Asked:
    """A request, and when its tokens came."""

    ids: list[int]
    new: int
    begun: float = 0.0
    first: float = 0.0
    tokens: int = 0


@dataclass
class Result:
    """What one way took for all requests."""

    seconds: float
    processor: float
    tokens: int
    first: list[float] = field(default_factory=list)


def requests(number: int, seed: int = 0) -> list[Asked]:
    """Return requests of mixed length; the same ones for the same seed."""
    draw = random.Random(seed)
    return [
        Asked(
            [draw.randrange(100, 40_000) for _ in range(draw.choice(PROMPTS))],
            draw.randint(*NEW),
        )
        for _ in range(number)
    ]


class Plain(nn.Module):
    """The base in the place of a mixture: the engine's own cost, without experts and gates."""

    def __init__(self, mixture: MixtureModel, base: nn.Module) -> None:
        super().__init__()
        self.base, self.config, self.device = base, base.config, base.device
        self.tokenizer, self.generation_config = mixture.tokenizer, base.generation_config
        self.gate_config, self.layers, self.expert_names = (
            mixture.gate_config,
            {"none": 0},
            ["none"],
        )

    def generate(self, fold: bool = False, **inputs: object) -> object:
        return self.base.generate(**inputs)

    def holding(self, rows: object) -> nullcontext:
        return nullcontext()

    def forward(self, **inputs: object) -> object:
        output = self.base(**inputs)
        carry(output.past_key_values, Carried())
        record = current().record
        if record is not None:
            record["none"] = RoutingWeights(torch.zeros(len(output.logits), 1, 1), None)
        return output


def one_by_one(mixture: MixtureModel, asked: Sequence[Asked]) -> None:
    """Answer each by itself."""
    for each in asked:
        static(mixture, [each])


def static(mixture: MixtureModel, asked: Sequence[Asked]) -> None:
    """Answer all as one padded batch, as long as its longest answer."""
    width = max(len(each.ids) for each in asked)
    ids = torch.zeros(len(asked), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(asked):
        ids[row, width - len(each.ids) :] = torch.tensor(each.ids)
        mask[row, width - len(each.ids) :] = 1
    new = max(each.new for each in asked)
    mixture.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None
    )
    for each in asked:
        each.tokens = each.new  # what a row generates beyond its limit is thrown away


def by_engine(engine: Engine, asked: Sequence[Asked], at_once: int) -> None:
    """Answer all, with so many in flight."""
    told: queue.Queue[tuple[Asked, Event]] = queue.Queue()
    left = list(asked)

    def submit() -> None:
        each = left.pop(0)
        each.begun = time.monotonic()
        deliver: Callable[[Event], None] = lambda event: told.put((each, event))  # noqa: E731
        sampling = Sampling(each.new, temperature=0.0, logprobs=0)
        engine.submit([Job(each.ids, sampling, deliver)])

    for _ in range(at_once):
        submit()
    running = at_once
    while running:
        each, event = told.get(timeout=300)
        if isinstance(event, Piece):
            each.first = each.first or time.monotonic()
            continue
        assert isinstance(event, End), event
        each.tokens = event.new_tokens
        running -= 1
        if left:
            submit()
            running += 1


def measured(work: Callable[[Sequence[Asked]], None], number: int, seed: int) -> Result:
    """Return what a way takes for new requests."""
    asked = requests(number, seed)
    gc.collect()
    clock, processor = time.perf_counter(), time.process_time()
    work(asked)
    seconds, spent = time.perf_counter() - clock, time.process_time() - processor
    first = [each.first - each.begun for each in asked if each.first]
    return Result(seconds, spent, sum(each.tokens for each in asked), first)


def ways(
    mixture: MixtureModel, engine: Engine, base: Engine
) -> dict[str, Callable[[Sequence[Asked]], None]]:
    """Return every way by name."""
    found: dict[str, Callable[[Sequence[Asked]], None]] = {
        "one by one": lambda asked: one_by_one(mixture, asked)
    }
    for size in AT_ONCE[1:]:
        found[f"static, {size}"] = lambda asked, size=size: [
            static(mixture, asked[start : start + size]) for start in range(0, len(asked), size)
        ]
    for name, each in (("engine", engine), ("engine, base", base)):
        for size in AT_ONCE:
            found[f"{name}, {size}"] = lambda asked, each=each, size=size: by_engine(
                each, asked, size
            )
    return found


def table(results: dict[str, list[Result]]) -> Iterator[str]:
    """Yield the lines of a table: medians over the rounds; ratios are of processor time."""
    yield "| way, at once | tokens/s | tokens per processor s | × one by one | time × its base |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    alone = results["one by one"]
    for name, runs in results.items():
        rate = statistics.median(run.tokens / run.seconds for run in runs)
        work = statistics.median(run.tokens / run.processor for run in runs)
        faster = _ratio(alone, runs)
        twin = results.get(name.replace("engine,", "engine, base,"), [])
        beside = f"{_ratio(runs, twin):.2f}" if twin and twin is not runs else ""
        yield f"| {name} | {rate:.1f} | {work:.1f} | {faster:.2f} | {beside} |"
    yield ""
    yield "| way, at once | first token, median s | 95 of 100 within s |"
    yield "| --- | ---: | ---: |"
    for name, runs in results.items():
        first = sorted(second for run in runs for second in run.first)
        if first:
            late = first[int(0.95 * (len(first) - 1))]
            yield f"| {name} | {statistics.median(first):.2f} | {late:.2f} |"


def _ratio(slower: list[Result], faster: list[Result]) -> float:
    """Return the median ratio of processor time per token."""
    pairs = zip(slower, faster, strict=False)
    return statistics.median(
        (one.processor / one.tokens) / (other.processor / other.tokens) for one, other in pairs
    )


@contextmanager
def systems(context: str) -> Iterator[tuple[MixtureModel, Engine, Engine]]:
    """Return the mixture, an engine over it, and one over its base."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_base("smollm2-135m")
        experts = save_adapters(loaded.model, Path(folder), 3)
        plain = load_base("smollm2-135m").model
        named = dict(zip("abc", experts, strict=True))
        mixture = MixtureModel.from_experts(
            loaded.model, named, gate=GateConfig(context=context)
        ).eval()
        mixture.tokenizer = loaded.tokenizer
        limits = Limits(rows=max(AT_ONCE))
        engines = [Engine(each, limits).start() for each in (mixture, Plain(mixture, plain))]
        try:
            yield mixture, *engines
        finally:
            for engine in engines:
                engine.stop()


def main() -> None:
    """Measure, print a table, and write every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", default="prompt", choices=("prompt", "running", "token"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--only", action="append", help="ways whose names begin so; repeatable")
    given = parser.parse_args()
    with systems(given.context) as (mixture, engine, base):
        chosen = {
            name: way
            for name, way in ways(mixture, engine, base).items()
            if not given.only or name.startswith(("one by one", *given.only))
        }
        results: dict[str, list[Result]] = {name: [] for name in chosen}
        for turn in range(given.rounds):
            for name, way in chosen.items():
                few = 4 if name == "one by one" else 1  # its time per token needs no crowd
                results[name].append(measured(way, given.requests // few, seed=turn))
                last = results[name][-1]
                rate = last.tokens / last.seconds
                print(f"{turn + 1}, {name}: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
            print(f"after {turn + 1} rounds:", *table(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
