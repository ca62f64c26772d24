"""Serve a mixture and ask it as OpenAI's API is asked, and which experts answered.

    pip install 'loramix[serve]' openai
    python examples/ask_a_served_mixture.py

Two adapters of a tiny random model, which needs no download, stand for yours. It takes seconds.
A mixture that is served already needs the lines of `ask` alone, with its address.
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory

from openai import APIConnectionError, OpenAI
from peft import LoraConfig

from loramix import MixtureModel, fit
from loramix.bases.loading import load_base

BASE = "tiny-llama"  # or a folder, or a Hub id
PROMPTS = {
    "haiku": [f"write a haiku about {word}" for word in ("snow", "frogs", "moons")],
    "title": [f"{word}: give this a title" for word in ("snow", "frogs", "moons")],
}
PATIENCE = 120  # seconds that the server may take to start


def main(folder: Path) -> None:
    """Make, serve and ask a mixture; all files go to `folder`."""
    adapters = {name: save_adapter(folder / name) for name in ("haiku", "title")}
    mixture = MixtureModel.from_experts(BASE, adapters)
    fit(mixture, PROMPTS)
    mixture.save_pretrained(folder / "my-mixture")
    with served(folder / "my-mixture") as url:
        ask(url)


def ask(url: str) -> None:
    """Print an answer of the mixture, of one expert alone, and of weights by hand."""
    client = OpenAI(base_url=url, api_key="none")
    for model, extra in (
        ("my-mixture", {}),
        ("my-mixture:haiku", {}),
        ("my-mixture", {"loramix": {"weights": {"haiku": 0.7, "title": 0.3}}}),
    ):
        answer = client.completions.create(
            model=model,
            prompt="write a haiku about rain",
            max_tokens=8,
            temperature=0,
            extra_body=extra,
        )
        weights = answer.model_extra["loramix"]["weights"]
        print(f"{model} {extra or ''}\n  answers {answer.choices[0].text!r}\n  with {weights}")


@contextmanager
def served(mixture: Path):
    """Serve a mixture on a free port until the block ends; gives the address of its API."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "loramix", "serve", str(mixture), "--port", str(port)]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_for(url)
        yield url
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    """Wait until the server answers."""
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            client.models.list()
            return
        except APIConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def save_adapter(folder: Path) -> Path:
    """Save an adapter with random weights."""
    model = load_base(BASE).model
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
