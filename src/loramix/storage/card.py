"""The model card of a mixture: what it is made of, and what a run measured."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from loramix.errors import CheckpointError
from loramix.storage.files import write_text
from loramix.storage.hub import is_hub_id
from loramix.storage.manifest import MixtureConfig, read_config

_MARKUP = re.compile(r"[`*\[\]<>|&\\#!~\r\n\u0085\u2028\u2029]")
RECIPE, METRICS = "recipe.yaml", "metrics.json"
Rows = Sequence[Mapping[str, object]]


def add_measurements(folder: Path, recipe: str, tables: Mapping[str, Rows], weights: Rows) -> None:
    """Add a run's recipe, its tables of scores and the mean weights to a mixture's folder and its
    card.
    """
    write_text(folder / RECIPE, recipe)
    write_text(
        folder / METRICS,
        json.dumps({"scores": tables, "mean_weights": weights}, indent=2, ensure_ascii=False),
    )
    write_card(folder)


def write_card(folder: Path) -> None:
    """Write README.md for the mixture in `folder`, from its configuration and the files of a run
    if there are any.
    """
    config = read_config(folder)
    measured = _measured(folder / METRICS)
    recipe = (folder / RECIPE).read_text(encoding="utf-8") if (folder / RECIPE).is_file() else ""
    template = Template((files("loramix.storage") / "card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        base=_code(config.base),
        base_id=f"base_model: {config.base}\n" if _on_hub(config.base) else "",
        revision=f" at revision {_code(config.revision)}" if config.revision else "",
        count=len(config.experts),
        prompts=_prompts(config),
        experts=_lines(
            (_plain(each.name), _code(each.source), _plain(", ".join(each.lossy) or "nothing"))
            for each in config.experts
        ),
        gate=_lines(_gate_settings(config)),
        weights=_section("Mean weights", [_table(measured.get("mean_weights", []))]),
        metrics=_section(
            "Scores on withheld test samples",
            [
                f"### {_plain(name)}\n\n{_table(rows)}"
                for name, rows in measured.get("scores", {}).items()
            ],
        ),
        recipe=_section("Recipe", [_fenced(recipe.strip(), "yaml") if recipe else ""]),
        versions=_plain(", ".join(map(" ".join, config.versions.items()))),
    )
    write_text(folder / "README.md", card)


def _measured(file: Path) -> dict[str, Any]:
    """Return a run's tables of scores and mean weights, if there are any."""
    if not file.is_file():
        return {}
    try:
        content: Any = json.loads(file.read_bytes())
        tables = [content.get("mean_weights", []), *content.get("scores", {}).values()]
        if all(isinstance(row, dict) for table in tables for row in table):
            return dict(content)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); delete it") from error
    raise CheckpointError(f"{file} is damaged: it holds no tables; delete it")


def _prompts(config: MixtureConfig) -> str:
    form = (
        "one user turn in the tokenizer's chat template" if config.prompting.chat else "plain text"
    )
    templates = "; ".join(
        f"{_plain(task)}: {_code(template)}"
        for task, template in config.prompting.templates.items()
    )
    return f"{form}; {templates}" if templates else form


def _gate_settings(config: MixtureConfig) -> list[tuple[str, object]]:
    unused = set() if config.gate.activation == "top-k" else {"k"}
    return list(config.gate.model_dump(exclude=unused).items())


def _on_hub(base: str) -> bool:
    """Return whether a base lies on the Hub, as its cards may name no other: not a path, not an
    embedded model.
    """
    return "/" in base and is_hub_id(base) and not Path(base).exists()


def _section(title: str, parts: Sequence[str]) -> str:
    filled = [part for part in parts if part]
    return "\n\n".join([f"\n## {title}", *filled]) + "\n" if filled else ""


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    return "\n".join(
        [
            f"| {' | '.join(_plain(column) for column in rows[0])} |",
            "|---" * len(rows[0]) + "|",
            _lines(tuple(map(_plain, row.values())) for row in rows),
        ]
    )


def _lines(rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _plain(value: object) -> str:
    """Return a text of strangers as text: nothing in it is Markdown or HTML."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", str(value))


def _code(text: str) -> str:
    """Return a text as code within a line or a cell, where it cannot end what is around it."""
    return f"<code>{_plain(text)}</code>" if _MARKUP.search(text) else f"`{text}`"


def _fenced(text: str, language: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
