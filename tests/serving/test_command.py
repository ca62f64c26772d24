"""`loramix serve`: what it starts, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn
from running import tiny_mixture


@pytest.fixture(scope="module")
def folder(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "my-mixture"
    tiny_mixture(make_adapter).save_pretrained(folder)
    return folder


def test_the_command_serves_this_machine_alone_unless_told(
    call: Callable[..., subprocess.CompletedProcess[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, object]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: started.append(settings))
    ended = call("serve", str(folder), "--new-tokens", "8")
    assert ended.returncode == 0
    assert (started[0]["host"], started[0]["access_log"]) == ("127.0.0.1", False)
    assert "my-mixture: http://127.0.0.1:8000/v1" in ended.stderr
    assert "keeps them out" not in ended.stderr
    assert "keeps them out" in call("serve", str(folder), "--host", "0.0.0.0").stderr
    monkeypatch.setenv("LORAMIX_API_KEY", "secret")
    assert "keeps them out" not in call("serve", str(folder), "--host", "0.0.0.0").stderr
    assert call("serve", str(folder), "--api-key", "").returncode == 2


@pytest.mark.slow
def test_a_process_ends_by_sigterm(folder: Path) -> None:
    command = [sys.executable, "-m", "loramix", "serve", str(folder), "--port", "8765"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "playground" in line)
        url = re.search(r"http://\S+(?=/v1)", line)[0]
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}/health") as health:
                    assert health.status == 200
                break
            except OSError:
                assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(60) in (0, -signal.SIGTERM)
