"""Push and pull, against a stand-in for the Hub on this machine that speaks as much of its protocol
as is needed.
"""

import base64
import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import save_expert, strengthen, target_logits, tiny_model, tokens
from huggingface_hub import constants

from loramix import MixtureModel

Call = Callable[..., subprocess.CompletedProcess[str]]


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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of an empty stand-in, which is the Hub while a test runs."""
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mixture_goes_to_the_hub_and_back(call: Call, hub: str, tmp_path: Path) -> None:
    folders = {
        name: save_expert(tmp_path / name, "llama", seed=index) for index, name in enumerate("ab")
    }
    mixture = strengthen(MixtureModel.from_experts(tiny_model("llama"), folders))
    mixture.save_pretrained(tmp_path / "mixture")
    result = call("push", str(tmp_path / "mixture"), "mine")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{hub}/me/mine/commit/")
    sent = {
        str(file.relative_to(tmp_path / "mixture"))
        for file in (tmp_path / "mixture").rglob("*")
        if file.is_file()
    }
    assert sent <= Hub.repositories["me/mine"].keys()
    result = call("pull", "me/mine", str(tmp_path / "pulled"))
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'pulled'}\n"), result.stderr
    again = MixtureModel.from_pretrained(tmp_path / "pulled", base=tiny_model("llama"))
    ids, target = tokens(2, 6), tokens(2, 4, seed=1)
    assert torch.equal(target_logits(again, ids, target), target_logits(mixture, ids, target))


@pytest.mark.usefixtures("hub")
def test_push_to_hub_and_from_pretrained_take_repository_names(tmp_path: Path) -> None:
    folders = {name: save_expert(tmp_path / name, "llama", seed=1) for name in "ab"}
    mixture = MixtureModel.from_experts(tiny_model("llama"), folders)
    mixture.push_to_hub("mine", private=True)
    again = MixtureModel.from_pretrained("me/mine", base=tiny_model("llama"))
    assert again.expert_names == ["a", "b"]


@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_said(call: Call, tmp_path: Path) -> None:
    result = call("pull", "me/nothing", str(tmp_path / "pulled"))
    assert result.returncode == 1
    assert (
        "error: there is no mixture 'me/nothing': it is no folder, and the hub has no such model"
        in result.stderr
    )
    assert not (tmp_path / "pulled").exists()
    (tmp_path / "empty").mkdir()
    assert "is no mixture" in call("push", str(tmp_path / "empty"), "mine").stderr
    assert Hub.repositories == {}
