"""The site: every page has its place, every link an end, and every picture a command."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Return the script that stages the pages."""
    spec = importlib.util.spec_from_file_location("stage_site", ROOT / "tools/stage_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the staged pages."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    tool.stage(folder)
    return folder


def places(nav: object) -> list[str]:
    """Return the pages of a navigation, however deep."""
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [page for each in inner for page in places(each)]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def test_every_page_has_one_place(pages: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    staged = sorted(page.relative_to(pages).as_posix() for page in pages.rglob("*.md"))
    assert sorted(places(nav)) == staged


def test_no_link_is_dead(pages: Path) -> None:
    dead = []
    for page in pages.rglob("*.md"):
        for to in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(page)):
            path, _, anchor = to.partition("#")
            place = page.parent / path if path else page
            if not place.exists() or (anchor and anchor not in anchors(place)):
                dead.append((page.name, to))
    assert dead == []


def test_a_link_is_named_by_the_title_of_its_page(tool: ModuleType) -> None:
    text = "[the data](data.md), [data.md](data.md#splits), [docs/data.md](data.md)"
    assert tool.linked(text, ROOT / "docs/adapters.md") == (
        "[the data](data.md), [Data](data.md#splits), [Data](data.md)"
    )


def test_links_out_of_the_site_become_text(tool: ModuleType) -> None:
    text = "[a](../src/loramix/errors.py), [errors.py](../src/loramix/errors.py),\n"
    kept = "[b](data.md)\n"
    text += f"[`README.md`](../README.md#licence), {kept}"
    code = "```\n[c](../src/loramix)\n```\n"
    assert tool.linked(text + code, ROOT / "docs/adapters.md") == (
        "a (`src/loramix/errors.py`), `src/loramix/errors.py`,\n"
        f"[`README.md`](index.md#licence), {kept}{code}"
    )


def test_cells_are_written_as_the_site_reads_them(tool: ModuleType) -> None:
    text = "| `<\\|end\\|>` | a \\| b | 2e-06 |\n\n`x \\| y` 2e-06\n"
    assert tool.linked(text, ROOT / "docs/chats.md") == (
        "| `<|end|>` | a \\| b | 2e\N{NON-BREAKING HYPHEN}06 |\n\n`x \\| y` 2e-06\n"
    )


def test_a_link_to_an_example_leads_to_its_place_on_the_page_of_examples(
    tool: ModuleType, pages: Path
) -> None:
    text = "[`examples/train_gates_with_trl.py`](../examples/train_gates_with_trl.py)"
    anchor = "generated/examples.md#train_gates_with_trlpy"
    assert (
        tool.linked(text, ROOT / "docs/start.md") == f"[examples/train_gates_with_trl.py]({anchor})"
    )
    shown = (pages / "generated/examples.md").read_text(encoding="utf-8")
    assert "#### Own adapters in, one model out" in shown  # the notebook's
    for example in tool.examples():
        assert f"## {example.name}\n" in shown


def test_the_reference_is_made_from_the_code(pages: Path) -> None:
    commands = (pages / "generated/commands.md").read_text(encoding="utf-8")
    assert "## loramix mix\n" in commands
    assert "--examples" in commands
    recipes = (pages / "generated/recipes.md").read_text(encoding="utf-8")
    assert "| `seed` | whole number | `0` |" in recipes
    assert "## comparison\n" in recipes
    assert "BaseModel" not in recipes + commands
    assert "::: loramix.MixtureModel" in (pages / "generated/python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/pictures").iterdir()), ids=str)
def test_a_picture_has_a_command(picture: Path) -> None:
    place = picture.relative_to(ROOT).as_posix()
    assert [each for each in (ROOT / "benchmarks").glob("*.py") if place in each.read_text()]
