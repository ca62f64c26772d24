"""Stage the pages of the site: the documents, and reference pages made from the code.

    python tools/stage_site.py build/pages

Links that leave the site, such as those to sources, become plain text. Some pages are written at
every build and never kept: the examples from their files, the command line from its help pages, the
recipe's keys from its schema, and Python's from docstrings, by mkdocstrings.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import loramix
from loramix.cli.main import cli
from loramix.experiment.recipe import Recipe

ROOT = Path(__file__).parents[1]
# Documents outside of docs/, and their pages.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
EXAMPLES = ROOT / "examples"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]+`")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def stage(target: Path) -> None:
    """Write all pages into the folder `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for document in documents():
        text = document.read_text(encoding="utf-8")
        (target / page_of(document)).write_text(linked(text, document), encoding="utf-8")
    generated = target / "generated"
    generated.mkdir()
    for name, text in (
        ("examples", examples_page()),
        ("commands", commands_page()),
        ("recipes", recipes_page()),
        ("python", python_page()),
    ):
        (generated / f"{name}.md").write_text(text, encoding="utf-8")


def documents() -> list[Path]:
    """Return all documents that become pages."""
    found = [ROOT / name for name in ELSEWHERE if (ROOT / name).is_file()]
    return [*found, *sorted((ROOT / "docs").glob("*.md"))]


def page_of(document: Path) -> str:
    """Return the path of a document's page within the site."""
    return ELSEWHERE.get(document.name, document.name)


def linked(text: str, document: Path) -> str:
    """Return a document's text with links to other pages, which are named by their titles instead
    of their files; code is left as it is.
    """
    pages = {each.resolve(): page_of(each) for each in documents()}
    files = {name for each in documents() for name in (each.name, f"docs/{each.name}")}

    def link(found: re.Match[str]) -> str:
        mark, label, to = found.groups()
        if to.startswith(("http:", "https:", "#", "mailto:")):
            return found[0]
        path, _, anchor = to.partition("#")
        place = (document.parent / path).resolve()
        if mark:
            return f"![{label}]({place.relative_to(ROOT / 'docs').as_posix()})"
        if place in pages:
            if label in files:
                label = title_of(place)
            return f"[{label}]({pages[place]}{f'#{anchor}' if anchor else ''})"
        if place in examples():
            return f"[{label.strip('`')}](generated/examples.md#{_anchor(place.name)})"
        source = place.relative_to(ROOT).as_posix()
        if source.endswith(label.strip("`")):
            return f"`{source}`"
        return f"{label} (`{source}`)"

    parts = _FENCE.split(text)
    return "".join(
        part if part.startswith("```") else _LINK.sub(link, _plain_cells(part)) for part in parts
    )


def _plain_cells(text: str) -> str:
    """Return a text with its tables as Python-Markdown reads them, which takes pipes in code as
    they are; numbers such as 2e-06 stay on one line.
    """

    def plain(row: re.Match[str]) -> str:
        cells = _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0])
        return re.sub(r"(\de)-(\d)", "\\1\N{NON-BREAKING HYPHEN}\\2", cells)

    return re.sub(r"^\|.*", plain, text, flags=re.MULTILINE)


def title_of(document: Path) -> str:
    """Return a document's first heading."""
    return document.read_text(encoding="utf-8").removeprefix("# ").partition("\n")[0]


def examples() -> list[Path]:
    """Return the scripts and notebooks that the examples' page shows."""
    return sorted(each for each in EXAMPLES.iterdir() if each.suffix in (".py", ".ipynb"))


def examples_page() -> str:
    """Return every example, each as a section that has its file's name."""
    parts = ["# Examples\n", "Each runs from a clone, by the command at its head.\n"]
    for example in examples():
        text = example.read_text(encoding="utf-8")
        shown = _notebook(text) if example.suffix == ".ipynb" else _fenced(text)
        parts += [f"## {example.name}\n", shown]
    return "\n".join(parts)


def _notebook(text: str) -> str:
    """Return a notebook's cells, with their headings below that of the section."""
    shown = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        shown.append(_fenced(source) if code else re.sub(r"^#+ ", "#### ", source, flags=re.M))
    return "\n\n".join(shown) + "\n"


def _fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```\n"


def _anchor(heading: str) -> str:
    """Return the anchor of a heading that is a file's name."""
    return re.sub(r"[^\w-]", "", heading).lower()


def commands_page() -> str:
    """Return the help of every command."""
    parts = ["# Command line\n", _help(cli, "loramix")]
    for name, command in sorted(cli.commands.items()):
        parts += [f"## loramix {name}\n", _help(command, f"loramix {name}")]
    return "\n".join(parts)


def _help(command: click.Command, typed: str) -> str:
    context = click.Context(
        command, info_name=typed, max_content_width=100, terminal_width=100, **cli.context_settings
    )
    return f"```text\n{command.get_help(context)}\n```\n"


def recipes_page() -> str:
    """Return the keys of a recipe, with types and defaults, from the schema that checks them."""
    parts = [
        "# Keys of a recipe\n",
        "A recipe is a YAML file, checked as a whole before any work; `loramix check RECIPE` "
        "prints every value. On the command line, `key.key=value` replaces one.\n",
    ]
    for title, model in models(Recipe, "recipe"):
        parts += [
            f"## {title}\n",
            f"{_prose(model)}\n",
            "| key | type | default |",
            "|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            parts.append(
                f"| `{field.alias or name}` | {_type(field.annotation)} | {_default(field)} |"
            )
        parts.append("")
    return "\n".join(parts)


def models(model: type[BaseModel], title: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a model and, once each, those of its fields, under the keys where they stand."""
    seen: set[type[BaseModel]] = set()
    waiting = [(title, model)]
    while waiting:
        title, model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        yield title, model
        for name, field in model.model_fields.items():
            key = name if title == "recipe" else f"{title}.{name}"
            waiting += [(key, each) for each in _models_in(field.annotation)]


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models_in(each)]


def _type(annotation: object) -> str:
    """Return a type as a reader of YAML needs it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inner)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[1])} by name"
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    if isinstance(annotation, type):
        return names.get(annotation, annotation.__name__)
    return str(annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(value, ensure_ascii=False, default=list)}`".replace("|", "\\|")


def _prose(model: type[BaseModel]) -> str:
    """Return a docstring's text, with each entry that explains keys as an item of its own."""
    text = re.sub(r"\n {8,}", " ", model.__doc__ or "")
    text = re.sub(r"\bNone\b", "`null`", text)  # as YAML has it
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(re.sub(r"^([a-z_]+(?:, [a-z_]+)*): ", _item, line) for line in lines).strip()


def _item(keys: re.Match[str]) -> str:
    return "\n- " + ", ".join(f"`{key}`" for key in keys[1].split(", ")) + ": "


def python_page() -> str:
    """Return the page of the public names, which mkdocstrings fills from their docstrings."""
    names = "\n\n".join(f"::: loramix.{name}" for name in loramix.__all__ if name[0] != "_")
    return f"# Python\n\n{names}\n"


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
