"""`loramix serve --engine vllm`: vLLM's own server, asked over HTTP by OpenAI's client."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm")
import openai
import torch
from vllm_bases import save_mixture

from loramix import MixtureModel

SECONDS = 300


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[openai.OpenAI, MixtureModel]]:
    root = tmp_path_factory.mktemp("served")
    mixture = save_mixture(root, context="prompt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(root / "mixture"), "--engine", "vllm", "--port", str(port)]
    words += ["--name", "mix", "--api-key", "key", "--", "--enforce-eager", "--block-size", "32"]
    names = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    names["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    log = root / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "loramix", *words], stdout=file, stderr=file, env=names
        ) as process,
    ):
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while not healthy(url):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0), mixture
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health") as answer:
            return answer.status == 200
    except OSError:
        return False


def alone(mixture: MixtureModel, prompt: list[int], **weights: object) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    found = mixture.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **weights
    )
    return found[0, len(prompt) :].tolist()


def test_every_way_of_asking_is_answered_as_by_generate(
    served: tuple[openai.OpenAI, MixtureModel],
) -> None:
    client, mixture = served
    prompts = [[(7 * i + j) % 250 + 3 for j in range(3 + 5 * i)] for i in range(8)]
    ways = [
        ("mix", None, {}),
        (
            "mix",
            {"loramix": {"weights": {"a": 0.5, "c": 0.25}}},
            {"weights": {"a": 0.5, "c": 0.25}},
        ),
        ("mix:b", None, {"weights": {"b": 1.0}}),
        ("mix:base", None, {"weights": {}}),
    ]

    def ask(number: int) -> list[int]:
        model, body, _ = ways[number % len(ways)]
        body = {
            **(body or {}),
            "return_token_ids": True,
        }  # of a character's bytes, the last are cut
        answer = client.completions.create(
            model=model, prompt=prompts[number], temperature=0, max_tokens=12, extra_body=body
        )
        return answer.choices[0].token_ids

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(len(prompts))))
    wanted = [alone(mixture, prompt, **ways[i % 4][2]) for i, prompt in enumerate(prompts)]
    assert answers == wanted
    assert {each.id for each in client.models.list()} >= {"mix", "mix:a", "mix:base"}


def test_what_cannot_be_answered_is_status_400_and_takes_nothing_down(
    served: tuple[openai.OpenAI, MixtureModel],
) -> None:
    client, _ = served
    asked = {"model": "mix", "prompt": [5, 6], "max_tokens": 1}
    for wrong in (
        {"loramix": {"weights": {"d": 1.0}}},
        {"loramix": {"layers": True}},
        {"vllm_xargs": {"loramix": "no JSON"}},
        {"use_beam_search": True},
    ):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**asked, extra_body=wrong)
    with pytest.raises(openai.BadRequestError, match="there is no expert 'd'"):
        client.completions.create(**asked, extra_body={"loramix": {"weights": {"d": 1.0}}})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").completions.create(**asked)
    assert client.completions.create(**asked).usage.completion_tokens == 1
