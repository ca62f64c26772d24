"""Many requests to one server, with hang-ups and malformed ones among them: nothing may be lost.

    python benchmarks/serving_soak.py                   10,000 requests
    python benchmarks/serving_soak.py --requests 1000

Over HTTP, to a tiny base with two random adapters, from 24 clients at once: 5 % hang up, 1 % are
malformed, and a third each goes to the gates and to two sets of weights by hand. Every answer is
compared with that of `MixtureModel.generate` alone. Prints what came of all, how the server counts
them, and the memory after every tenth; exits with 1 if an answer is wrong, one is missing, a row
stays behind, or memory grows by more than 5 % once a fifth of the requests has been answered.
"""

import argparse
import http.client
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn
from speed_systems import save_adapters

from loramix import MixtureModel
from loramix.bases.loading import load_base
from loramix.data.tokens.answers import end_ids
from loramix.serving.app import build
from loramix.serving.engine import Engine
from loramix.serving.jobs import Limits

CLIENTS, PROMPTS = 24, 40
WEIGHTS: tuple[Mapping[str, float] | None, ...] = (None, {"a": 1.0}, {"a": 0.3, "b": 0.6})
HANG_UPS, MALFORMED, GROWTH = 0.05, 0.01, 1.05


@dataclass(frozen=True)
class Question:
    """A request, and its only right answer."""

    prompt: str
    new: int
    weights: Mapping[str, float] | None
    answer: str

    def body(self, *, stream: bool) -> dict[str, object]:
        """Return it as a server reads it."""
        given = {"weights": self.weights} if self.weights is not None else {}
        sampling = {"max_tokens": self.new, "temperature": 0, "stream": stream}
        return {"model": "soak", "prompt": self.prompt, "loramix": given, **sampling}


def questions(mixture: MixtureModel) -> list[Question]:
    """Return questions of mixed length with their answers."""
    draw, found = random.Random(0), list[Question]()
    ends = end_ids(mixture.tokenizer, mixture.generation_config, chat=False)
    for _ in range(PROMPTS):
        prompt = "".join(draw.choice("abcdefgh ") for _ in range(draw.choice((1, 4, 9, 30, 90))))
        inputs = mixture.text_inputs(prompt)
        for weights in WEIGHTS:
            new = draw.randint(1, 24)
            given = {} if weights is None else {"weights": weights}
            ids = mixture.generate(
                **inputs, max_new_tokens=new, do_sample=False, eos_token_id=ends, **given
            )[0, inputs["input_ids"].shape[1] :]
            text = mixture.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(Question(prompt, new, weights, text))
    return found


@contextmanager
def serving() -> Iterator[tuple[Engine, str, list[Question]]]:
    """Serve a tiny mixture; yield its engine, its address and questions."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_base("tiny-llama")
        named = dict(zip("ab", save_adapters(loaded.model, Path(folder), 2), strict=True))
        mixture = MixtureModel.from_experts(loaded.model, named).eval()
        mixture.tokenizer = loaded.tokenizer
        asked = questions(mixture)
    engine = Engine(mixture, Limits()).start()
    server = uvicorn.Server(uvicorn.Config(build(engine, "soak"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield engine, f"{host}:{port}", asked
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, asked: list[Question], number: int) -> str:
    """Ask one question, hang up, or send something malformed; return what came of it."""
    draw = random.Random(number)
    question, kind, stream = draw.choice(asked), draw.random(), draw.random() < 0.5
    with closing(http.client.HTTPConnection(address, timeout=120)) as connection:
        body = json.dumps(question.body(stream=stream)).encode()
        if kind < MALFORMED:
            body = draw.choice((body[:-5], b"[]", b'{"model": "soak"}'))
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        if MALFORMED <= kind < MALFORMED + HANG_UPS:
            time.sleep(draw.random() / 20)
            return "hung up"
        response = connection.getresponse()
        told = response.read().decode()
    if kind < MALFORMED:
        return "refused" if response.status == 400 else f"malformed, but {response.status}"
    if response.status != 200:
        return f"status {response.status}"
    return "right" if _text(told, stream=stream) == question.answer else "wrong"


def _text(told: str, *, stream: bool) -> str:
    if not stream:
        return json.loads(told)["choices"][0]["text"]
    lines = [line.removeprefix("data: ") for line in told.split("\n\n") if line]
    if lines.pop() != "[DONE]":
        return "cut off"
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


def memory() -> float:
    """Return the memory of this process, server and clients, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


def counted(address: str) -> str:
    """Return the server's own count of answers, by how they ended."""
    with closing(http.client.HTTPConnection(address, timeout=120)) as connection:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    found = re.findall(r'loramix_answers_total{reason="(\w+)"} (\d+)', page)
    return ", ".join(f"{reason} {number}" for reason, number in found)


def main() -> int:
    """Ask, count, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    number = parser.parse_args().requests
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    begun, used = time.monotonic(), list[float]()
    with serving() as (engine, address, asked), ThreadPoolExecutor(CLIENTS) as pool:
        for tenth in range(10):
            turn = range(number * tenth // 10, number * (tenth + 1) // 10)
            found.update(pool.map(lambda each: ask(address, asked, each), turn))
            used.append(memory())
            print(f"{turn.stop} requests, {used[-1]:.0f} MB", flush=True)
        deadline = time.monotonic() + 30
        while (engine.rows or engine.waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        left, told = engine.rows + engine.waiting, counted(address)
    print(
        f"{dict(found)}, {left} rows left, {time.monotonic() - begun:.0f} s; by the server: {told}"
    )
    whole = found.total() == number and set(found) <= {"right", "refused", "hung up"}
    return 0 if whole and not left and max(used[2:]) <= GROWTH * used[1] else 1


if __name__ == "__main__":
    sys.exit(main())
