"""The vLLM engine beside vLLM's own base and beside `MixtureModel.generate`, in processor seconds.

    OMP_NUM_THREADS=1 python benchmarks/serving_vllm.py                 prompt gates
    OMP_NUM_THREADS=1 python benchmarks/serving_vllm.py --context token
    OMP_NUM_THREADS=1 python benchmarks/serving_vllm.py --first-pass    prompt gates, together

In an environment with vLLM (`make vllm-test` makes one). Requests of mixed length, with random
tokens, on SmolLM2-135M with three random adapters of rank 16, float32, one thread; vLLM's own
compilation, unless `--eager`. Every way has a process of its own; they take turns, and processor
time is what counts.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.update(
    VLLM_USE_V2_MODEL_RUNNER="0",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
)
PROMPTS, NEW, LONGEST = (16, 32, 64, 200), (8, 48), 512
AT_ONCE = (1, 4, 16)
Request = tuple[list[int], int]  # a prompt, and how many tokens to answer
Answer = Callable[[Sequence[Request], int], None]


def requests(number: int, seed: int) -> list[Request]:
    """Return requests of mixed length; the same ones for the same seed."""
    draw = random.Random(seed)
    return [
        ([draw.randrange(100, 40_000) for _ in range(draw.choice(PROMPTS))], draw.randint(*NEW))
        for _ in range(number)
    ]


def save_mixture(folder: Path, gate: dict[str, object]) -> None:
    """Write a mixture of three random adapters to a folder."""
    from speed_systems import save_adapters

    from loramix import GateConfig, MixtureModel
    from loramix.bases.loading import load_base

    base = load_base("smollm2-135m")
    experts = dict(zip("abc", save_adapters(base.model, folder / "experts", 3), strict=True))
    mixture = MixtureModel.from_experts("smollm2-135m", experts, gate=GateConfig(**gate))
    mixture.save_pretrained(folder / "mix")


def by_vllm(mixture: Path, *, base: bool, eager: bool) -> Answer:
    """Return vLLM over a mixture, or over its base with the same settings."""
    from vllm import LLM, SamplingParams

    from loramix.serving.vllm.settings import settings

    given = {**settings(mixture, tokens=LONGEST), "max_num_seqs": max(AT_ONCE)}
    given["enforce_eager"] = eager
    if base:
        for key in ("hf_overrides", "worker_cls", "logits_processors"):
            del given[key]
    engine = LLM(**given).llm_engine

    def answer(asked: Sequence[Request], at_once: int) -> None:
        left, running = list(enumerate(asked)), 0
        while left or running:
            while left and running < at_once:
                number, (prompt, new) = left.pop(0)
                params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
                engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
                running += 1
            running -= sum(output.finished for output in engine.step())

    return answer


def by_generate(mixture: Path) -> Answer:
    """Return `MixtureModel.generate`, by padded batches of as many as are there at once."""
    import torch

    from loramix import MixtureModel

    model = MixtureModel.from_pretrained(mixture)

    def answer(asked: Sequence[Request], at_once: int) -> None:
        for start in range(0, len(asked), at_once):
            some = asked[start : start + at_once]
            width = max(len(prompt) for prompt, _ in some)
            ids = torch.zeros(len(some), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, (prompt, _) in enumerate(some):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            new = max(new for _, new in some)
            inputs = {"input_ids": ids, "attention_mask": mask, "eos_token_id": None}
            model.generate(**inputs, max_new_tokens=new, do_sample=False)

    return answer


def work(way: str, mixture: Path, eager: bool, orders: Connection) -> None:
    """Answer what is ordered, (requests, at once), and tell the processor seconds."""
    import torch

    torch.set_num_threads(1)
    if way == "generate":
        answer = by_generate(mixture)
    else:
        answer = by_vllm(mixture, base=way == "base", eager=eager)
    answer(requests(2, seed=99), 2)
    orders.send(0.0)
    with suppress(EOFError):
        while True:
            asked, at_once = orders.recv()
            began = time.process_time()
            answer(asked, at_once)
            orders.send(time.process_time() - began)


def main() -> None:
    """Measure in rounds, and print ratios of processor time: medians, and their range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", default="prompt", choices=("prompt", "running", "token"))
    parser.add_argument("--first-pass", action="store_true", help="gates that decide together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--eager", action="store_true", help="without compilation: minutes less")
    given = parser.parse_args()
    name = "first pass" if given.first_pass else given.context
    processes, ways = get_context("spawn"), ("mixture", "base", "generate")
    with tempfile.TemporaryDirectory() as temporary:
        gate = {"context": given.context, "first_pass": given.first_pass}
        save_mixture(Path(temporary), gate)
        pipes = {}
        for way in ways:
            pipes[way], theirs = processes.Pipe()
            arguments = (way, Path(temporary) / "mix", given.eager, theirs)
            processes.Process(target=work, args=arguments, daemon=True).start()
            theirs.close()
            pipes[way].recv()
        print("| gates | at once | mixture / vLLM's base | generate / mixture |")
        print("| --- | ---: | ---: | ---: |")
        for at_once in AT_ONCE:
            took: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(given.rounds):
                asked = requests(given.requests if at_once > 1 else given.requests // 4, turn)
                for way in ways:
                    pipes[way].send((asked, at_once))
                    took[way].append(pipes[way].recv())
            over_base = _ratio(took["mixture"], took["base"])
            faster = _ratio(took["generate"], took["mixture"])
            print(f"| {name} | {at_once} | {over_base} | {faster} |", flush=True)


def _ratio(one: Sequence[float], other: Sequence[float]) -> str:
    found = sorted(a / b for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


if __name__ == "__main__":
    main()
