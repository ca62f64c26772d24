"""The notebook and the scripts of `examples/` run as they stand; the trainers' have tests of their
own (`tests/mixture/test_trainer.py`, `tests/mixture/test_trl.py`).
"""

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def cells(notebook: Path, kind: str) -> list[str]:
    """Return the texts of a notebook's cells of one kind."""
    read = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a notebook shows; IPython is no dependency of the tests."""
    shown: list[str] = []
    display = ModuleType("IPython.display")
    display.SVG = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_the_notebook_runs_from_top_to_bottom(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)  # of the adapters
    names: dict[str, object] = {}
    for cell in cells(EXAMPLES / "own_adapters.ipynb", "code"):
        exec(cell, names)
    assert [picture.count("<text") > 4 for picture in pictures] == [True]
    assert (names["folder"] / "one-adapter/adapter_config.json").is_file()
    weights = [each.mean for each in names["explained"]]
    assert weights[0][0] > 0.5 > weights[1][0]  # each prompt goes to its own expert


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    kept = json.loads((EXAMPLES / "own_adapters.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in kept["cells"])


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_an_example_begins_with_the_command_that_runs_it(file: Path) -> None:
    head = file.read_text(encoding="utf-8").split('"""')[1] if file.suffix == ".py" else ""
    head = head or cells(file, "markdown")[0]
    assert re.search(rf"^    (python|jupyter lab) examples/{re.escape(file.name)}$", head, re.M)


@pytest.mark.slow
def test_the_serving_client_asks_a_server(capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "ask_a_served_mixture.py"), run_name="__main__")
    assert capfd.readouterr().out.count("my-mixture") >= 3


@pytest.mark.slow
def test_the_harness_scores_a_mixture(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="get it with: pip install 'loramix[harness]'")
    runpy.run_path(str(EXAMPLES / "score_with_lm_eval.py"), run_name="__main__")
    assert capfd.readouterr().out.count("acc_norm") == 2
