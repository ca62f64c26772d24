"""The commands shown in help pages and at the head of recipes can be typed as they stand."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from loramix.cli.main import cli
from loramix.experiment.reading import load_recipe, shipped

pytestmark = pytest.mark.usefixtures("without_fetching")


@pytest.fixture(autouse=True)
def files_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder that has the files which examples name."""
    monkeypatch.chdir(tmp_path)
    Path("results/demo/cgm/models").mkdir(parents=True)
    Path("my-mixture").mkdir()
    Path("my-recipe.yaml").write_text("extends: demo\nname: mine\n", encoding="utf-8")
    for name in ("haiku", "arxiv"):
        Path(f"{name}.parquet").touch()


@pytest.mark.parametrize("command", ["", *cli.commands])
def test_every_help_page_has_examples_that_can_be_typed(command: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert result.exit_code == 0
    examples = list(commands(result.output.partition("Examples:\n")[2], indent="    "))
    assert examples
    assert {words[0] for words in examples} <= {command or words[0] for words in examples}
    for words in examples:
        check(words)


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_starts_with_commands_that_can_be_typed(name: str) -> None:
    text = shipped()[name].read_text(encoding="utf-8")
    examples = list(commands(text, indent="#   "))
    assert any(name in words for words in examples)
    for words in examples:
        check(words)


@pytest.mark.parametrize("name", shipped())
def test_the_list_of_recipes_fits_a_line_of_100_columns(name: str) -> None:
    lines = CliRunner().invoke(cli, ["recipes"]).output.splitlines()
    assert [line for line in lines if line.startswith(f"{name} ") and len(line) <= 100]


def commands(text: str, *, indent: str) -> Iterator[list[str]]:
    """Yield the words after `loramix` of every indented command, without the remarks beside it."""
    joined = re.sub(r"\\\n[# ]+", "", text)
    for line in joined.splitlines():
        if line.startswith(f"{indent}loramix "):
            command = line.removeprefix(indent).split("   ")[0]
            yield shlex.split(command, comments=True)[1:]


def check(words: list[str]) -> None:
    """Let click parse a command, and loramix its recipe; raise what they raise."""
    name, *arguments = words
    if arguments == ["--help"]:
        return
    given = cli.commands[name].make_context(name, arguments).params
    if "overrides" in given:
        load_recipe(given["recipe"], given["overrides"])
