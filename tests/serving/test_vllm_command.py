"""The vLLM engine as far as it goes without vLLM: its command, its refusals, and its HTTP."""

import asyncio
import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import save_expert, strengthen, tiny_model
from running import tiny_mixture

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError
from loramix.serving.vllm import http
from loramix.serving.vllm import settings as vllm_settings
from loramix.serving.vllm.served import Served
from loramix.serving.vllm.settings import settings


@pytest.fixture(scope="module")
def folder(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "my-mixture"
    tiny_mixture(make_adapter).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIX_CACHE", str(tmp_path / "cache"))


def test_the_command_becomes_vllms_server(
    call: Callable[..., subprocess.CompletedProcess[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, words, names: told.append((words, names)))
    monkeypatch.setattr(vllm_settings, "find_spec", lambda name: name)
    given = ["--engine", "vllm", "--port", "81", "--api-key", "secret", "--", "--seed", "3"]
    assert call("serve", str(folder), *given).returncode == 0
    words, variables = told[0]
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[-2:] == ["--seed", "3"]
    following = dict(itertools.pairwise(words))
    assert (following["--host"], following["--port"]) == ("127.0.0.1", "81")
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= set(words)
    names = words[words.index("--served-model-name") + 1 :][:4]
    assert names == ["my-mixture", "my-mixture:base", "my-mixture:a", "my-mixture:b"]
    overrides = json.loads(following["--hf-overrides"])
    assert overrides["architectures"] == ["LoramixLlamaForCausalLM"]
    assert overrides["loramix"] == str(folder)
    assert (Path(following["--model"]) / "config.json").exists()
    assert variables["VLLM_API_KEY"] == "secret"
    assert "secret" not in words
    assert variables["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_without_vllm_one_line_says_how_to_get_it(
    call: Callable[..., subprocess.CompletedProcess[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_settings, "find_spec", lambda name: None)
    ended = call("serve", str(folder), "--engine", "vllm")
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines() == [
        "error: vllm is not installed; get it with: pip install 'loramix[vllm]'"
    ]


@pytest.mark.parametrize(
    "words", [["--engine", "vllm", "--seconds", "5"], ["--", "--max-model-len", "9"]]
)
def test_options_of_the_other_engine_are_refused(
    words: list[str], call: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    ended = call("serve", str(folder), *words)
    assert ended.returncode == 2
    assert "vllm" in ended.stderr.lower()


@pytest.mark.parametrize("shape", ["t5", "llama"])
def test_what_vllm_cannot_answer_is_refused_before_it_starts(shape: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model(shape).save_pretrained(base)
    expert = save_expert(tmp_path / "e", shape, seed=1)
    gate = GateConfig() if shape == "t5" else GateConfig.reference()
    model = tiny_model(shape)
    model.config.name_or_path = str(base)
    strengthen(MixtureModel.from_experts(model, {"a": expert}, gate=gate)).save_pretrained(
        tmp_path / "mixture"
    )
    with pytest.raises(MixtureError, match="encoder-decoder" if shape == "t5" else "reference"):
        settings(tmp_path / "mixture")


def asked(served: Served, path: str, body: object) -> tuple[int, object]:
    """Return the status and the body that reach vLLM, or those of the refusal."""
    got: dict[str, object] = {}

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        got["body"] = json.loads((await receive())["body"])
        got["length"] = dict(scope["headers"])[b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = json.dumps(body).encode()
    parts = [sent[:9], sent[9:]]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict) -> None:
        got.setdefault("status", message.get("status"))
        if "body" in message and "body" not in got:
            got["body"] = json.loads(message["body"])

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", b"7")]}
    translation = getattr(http, served.as_attribute)(app)
    asyncio.run(translation(scope, receive, send))
    return int(got["status"]), got["body"]


def test_weights_and_single_experts_are_said_in_vllms_words(folder: Path) -> None:
    served, path = Served(str(folder), "m"), "/v1/chat/completions"
    by_hand = {"weights": {"a": 0.25}}
    status, body = asked(served, path, {"model": "m", "n": 2, "loramix": by_hand})
    assert status == 200
    assert body == {"model": "m", "n": 2, "vllm_xargs": {"loramix": json.dumps(by_hand)}}
    alone = asked(served, path, {"model": "m:b", "vllm_xargs": {"k": 1}})[1]
    assert alone["vllm_xargs"] == {"k": 1, "loramix": '{"weights": {"b": 1.0}}'}
    assert asked(served, path, {"model": "m:base"})[1]["vllm_xargs"]["loramix"] == '{"weights": {}}'
    assert asked(served, path, {"model": "m", "n": 2})[1] == {"model": "m", "n": 2}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "m:a", "loramix": {"weights": {"b": 1.0}}}),
        ("/v1/completions", {"model": "m:a", "loramix": "x"}),
        ("/v1/completions", {"model": "m:a", "vllm_xargs": {"loramix": "{}"}}),
        ("/v1/completions", {"model": "m", "use_beam_search": True}),
        ("/v1/responses", {"model": "m", "loramix": {"weights": {}}}),
        ("/v1/responses", {"model": "m:a"}),
    ],
)
def test_what_would_be_ignored_is_refused(path: str, body: object, folder: Path) -> None:
    status, told = asked(Served(str(folder), "m"), path, body)
    assert status == 400
    assert told["error"]["type"] == "invalid_request_error"
