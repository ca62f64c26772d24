"""Every block of the README and the first pages does what it says; documents point to what is
there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loramix.experiment.reading import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
START = ROOT / "docs/start.md"  # its first block makes the adapters that the other pages use
EXECUTED = [ROOT / "README.md", START, ROOT / "docs/python.md", ROOT / "docs/command-line.md"]
# The first three set up an environment and take minutes; make itself is what runs these tests.
# A server does not end: `tests/serving` and an example start it.
LEFT_OUT = ("make demo", "make test", ". .venv/bin/activate", "loramix serve")


def blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_lines(document: Path) -> list[str]:
    """Return the commands of a document, those over several lines as one."""
    text = "".join(blocks(document, "sh"))
    return re.sub(r" *\\\n *", " ", text).splitlines()


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with the adapters and prompts to play with."""
    monkeypatch.chdir(tmp_path)
    exec(blocks(START, "python")[0], {})


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_python_blocks_run_from_top_to_bottom(document: str, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(ROOT / document, "python"):
        exec(block, names)
    assert names["mix"].expert_names == ["haiku", "title"]
    written = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    more = {"my-mixture", "one-adapter"} if document == "docs/python.md" else set()
    assert written == {"adapters", "five-lines"} | more


@pytest.mark.usefixtures("adapters")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "files"),
    [
        ("README.md", ["my-mixture/mixture_config.json", "routing.svg"]),
        ("docs/start.md", ["my-mixture/mixture_config.json", "one-adapter/adapter_config.json"]),
        (
            "docs/command-line.md",
            [
                *("why.html", "results/tiny-sweep/sweep.html"),
                "results/tiny/compare/tiny/report.html",
            ],
        ),
    ],
)
def test_the_shell_blocks_run_from_top_to_bottom(
    document: str, files: list[str], tmp_path: Path
) -> None:
    typed = [line for line in shell_lines(ROOT / document) if not line.startswith(LEFT_OUT)]
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "loramix"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m loramix "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", "\n".join(typed)],
        stdin=subprocess.DEVNULL,  # of the chat
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=True,
    )
    assert [file for file in files if not (tmp_path / file).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_line_of_the_shell_blocks_is_run_or_left_out_by_name(document: Path) -> None:
    lines = shell_lines(document)
    assert document in EXECUTED or not lines  # blocks that are not run are marked otherwise
    assert all(line.startswith((*LEFT_OUT, "loramix ")) for line in lines)


def test_the_readme_begins_with_the_two_commands_that_show_and_prove_it() -> None:
    lines = shell_lines(ROOT / "README.md")
    assert [line.split("#")[0].strip() for line in lines[:2]] == ["make demo", "make test"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_to_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    files = set(re.findall(r"`((?:benchmarks|docs|src|tests)/[\w./-]*)", text))
    files |= {f"tests/{file}" for file in re.findall(r"`([\w/]*test_\w+\.py)", text)}
    files = {file.replace("tests/tests/", "tests/") for file in files if "NAME" not in file}
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_recipes_of_the_documents_can_be_run(tmp_path: Path) -> None:
    for number, block in enumerate(text for path in DOCUMENTS for text in blocks(path, "yaml")):
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(block, encoding="utf-8")
        load_recipe(str(recipe))


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_help_names_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^make ([\w-]+) +\w", listed.stdout, re.MULTILINE) == targets[0].split()
