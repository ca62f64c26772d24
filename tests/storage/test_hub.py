"""Push and pull, against a stand-in for the Hub on this machine that speaks as much of its protocol
as is needed.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import save_expert, strengthen, target_logits, tiny_model, tokens

from loramix import MixtureModel


class Hub(BaseHTTPRequestHandler):
    """One repository per name, each with one branch; every commit replaces files."""

    repositories: dict[str, dict[str, bytes]] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            name = f"me/{json.loads(body)['name']}"
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith("/commit/main"):
            name = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repositories[name][entry["value"]["path"]] = base64.b64decode(
                        entry["value"]["content"]
                    )
            address = f"http://{self.headers['Host']}/{name}/commit/{self._commit(name)}"
            self._answer(
                {"commitUrl": address, "commitOid": self._commit(name), "pullRequestUrl": None}
            )
        else:
            self._answer({"error": self.path}, status=404)

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        parts = self.path.split("/")
        if parts[1] == "api" and parts[2] == "whoami-v2":
            self._answer({"name": "me", "type": "user", "orgs": []})
        elif parts[1] == "api" and parts[2] == "models":
            name = "/".join(parts[3:5])
            if name not in self.repositories:
                self._answer(
                    {"error": "Repository not found"},
                    status=404,
                    headers={"X-Error-Code": "RepoNotFound"},
                )
                return
            files = [{"rfilename": file} for file in self.repositories[name]]
            tree = [
                {
                    "type": "file",
                    "path": file,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for file, content in self.repositories[name].items()
            ]
            if "tree" in parts:
                self._answer(tree)
            else:
                self._answer(
                    {
                        "id": name,
                        "sha": self._commit(name),
                        "siblings": files,
                        "tags": [],
                        "private": False,
                    }
                )
        else:
            self._file(send=True)

    def _commit(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()

    def _file(self, *, send: bool) -> None:
        owner, repository, _, _, *path = self.path.lstrip("/").partition("?")[0].split("/")
        name = f"{owner}/{repository}"
        content = self.repositories.get(name, {}).get("/".join(path))
        if content is None:
            self._answer(
                {"error": "not found"}, status=404, headers={"X-Error-Code": "EntryNotFound"}
            )
            return
        headers = {
            "X-Repo-Commit": self._commit(name),
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
        }
        self._answer(content, headers=headers, send=send)

    def _answer(
        self,
        content: object,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        send: bool = True,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Return the address of an empty stand-in."""
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def python(code: str, *arguments: str, hub: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, for which the stand-in is the Hub."""
    online = {
        "HF_ENDPOINT": hub,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment = {
        key: value
        for key, value in os.environ.items()
        if "OFFLINE" not in key and "PROXY" not in key.upper()
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, **online}
    )


CLI = "from loramix.cli.main import main; main()"


def test_a_mixture_goes_to_the_hub_and_back(hub: str, tmp_path: Path) -> None:
    folders = {
        name: save_expert(tmp_path / name, "llama", seed=index) for index, name in enumerate("ab")
    }
    mixture = strengthen(MixtureModel.from_experts(tiny_model("llama"), folders))
    mixture.save_pretrained(tmp_path / "mixture")
    result = python(
        CLI, "push", str(tmp_path / "mixture"), "mine", hub=hub, cache=tmp_path / "cache"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{hub}/me/mine/commit/")
    sent = {
        str(file.relative_to(tmp_path / "mixture"))
        for file in (tmp_path / "mixture").rglob("*")
        if file.is_file()
    }
    assert sent <= Hub.repositories["me/mine"].keys()
    result = python(
        CLI, "pull", "me/mine", str(tmp_path / "pulled"), hub=hub, cache=tmp_path / "other"
    )
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'pulled'}\n"), result.stderr
    again = MixtureModel.from_pretrained(tmp_path / "pulled", base=tiny_model("llama"))
    ids, target = tokens(2, 6), tokens(2, 4, seed=1)
    assert torch.equal(target_logits(again, ids, target), target_logits(mixture, ids, target))


def test_push_to_hub_and_from_pretrained_take_repository_names(hub: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import conftest
import os
os.environ.pop("HF_HUB_OFFLINE", None)
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = False
from pathlib import Path
from loramix import MixtureModel
folders = {{name: conftest.save_expert(Path(sys.argv[1]) / name, "llama", seed=1) for name in "ab"}}
mixture = MixtureModel.from_experts(conftest.tiny_model("llama"), folders)
print(mixture.push_to_hub("mine", private=True))
again = MixtureModel.from_pretrained("me/mine", base=conftest.tiny_model("llama"))
print(again.expert_names)
"""
    result = python(code, str(tmp_path), hub=hub, cache=tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1] == "['a', 'b']"


def test_what_is_not_there_is_said(hub: str, tmp_path: Path) -> None:
    result = python(
        CLI, "pull", "me/nothing", str(tmp_path / "pulled"), hub=hub, cache=tmp_path / "cache"
    )
    assert result.returncode == 1
    assert (
        "error: there is no mixture 'me/nothing': it is no folder, and the hub has no such model"
        in result.stderr
    )
    assert not (tmp_path / "pulled").exists()
    (tmp_path / "empty").mkdir()
    result = python(CLI, "push", str(tmp_path / "empty"), "mine", hub=hub, cache=tmp_path / "cache")
    assert "is no mixture" in result.stderr
    assert Hub.repositories == {}
