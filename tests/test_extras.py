"""A package of an extra that is not installed: one line that says how to get it, and early."""

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from loramix.errors import LoramixError, MissingExtraError
from loramix.experiment.extras import EXTRAS, needed, require

ROOT = Path(__file__).parents[1]
DECLARED: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
RECIPE = "tiny"


class Absent:
    """A finder that finds no module of the packages given, whether installed or not."""

    def __init__(self, *packages: str) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return None  # type: ignore[return-value]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes packages impossible to import."""

    def remove(*packages: str) -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in packages:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Absent(*packages), *sys.meta_path])
        monkeypatch.setattr(
            "loramix.experiment.extras.find_spec",
            lambda name: None if name in packages else importlib.util.find_spec(name),
        )

    return remove


def packages_of(extra: str) -> set[str]:
    return {re.split(r"[>\[]", each)[0].lower() for each in DECLARED[extra]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_packages_asked_for_are_those_of_the_extra(extra: str) -> None:
    assert set(EXTRAS[extra].values()) == packages_of(extra)
    require(extra)  # and installed here


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("bert_score", "metrics", ["run", RECIPE]),
        ("sacrebleu", "metrics", ["run", RECIPE, "--stage", "evaluate"]),
        ("matplotlib", "report", ["run", RECIPE, "--stage", "lora"]),
        ("rouge_score", "metrics", ["compare", RECIPE]),
        ("cma", "comparison", ["compare", RECIPE]),
        ("ray", "cluster", ["run", RECIPE, "--cluster"]),
        ("ray", "cluster", ["compare", RECIPE, "--cluster", "10.0.0.1:6379"]),
        ("ray", "cluster", ["sweep", RECIPE, "gate.hidden=4,8", "--cluster"]),
        ("matplotlib", "report", ["sweep", RECIPE, "gate.hidden=4,8", "--stage", "gate"]),
        ("fastapi", "serve", ["serve", "no-mixture"]),
        ("uvicorn", "serve", ["serve", "no-mixture"]),
    ],
)
def test_a_command_says_so_before_it_works(
    without: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
    extra: str,
    command: list[str],
) -> None:
    from loramix.cli.main import cli

    monkeypatch.chdir(tmp_path)
    for name in [each for each in sys.modules if each.startswith("loramix.serving")]:
        monkeypatch.delitem(sys.modules, name)
    without(module)
    with pytest.raises(MissingExtraError) as caught:
        cli(command, standalone_mode=False)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        f"is not installed; get it with: pip install 'loramix[{extra}]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_a_stage_does_not_use_it_does_not_ask_for() -> None:
    assert needed("prepare") == ()
    assert needed("gate") == ("report",)
    assert needed(None) == needed("evaluate") == ("metrics", "report")


def test_the_base_in_a_wheel_needs_its_reader(without: Callable[..., None]) -> None:
    from loramix.bases.embedded import _require

    without("gguf")
    with pytest.raises(LoramixError, match=r"gguf is not installed.*'loramix\[embedded\]'"):
        _require("gguf")


@pytest.mark.slow  # a process that imports torch
def test_the_harness_says_so_without_a_traceback() -> None:
    code = (
        "import runpy, sys; sys.modules['lm_eval'] = None\n"
        "runpy.run_module('loramix.harness', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: lm-eval is not installed; get it with: pip install 'loramix[harness]'"
    )
    assert "Traceback" not in ended.stderr
