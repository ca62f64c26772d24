"""The model card of a mixture: what it is made of, and what a run measured."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from loramix.storage.files import write_text
from loramix.storage.format import MixtureConfig, read_config

RECIPE, METRICS = "recipe.yaml", "metrics.json"
Rows = Sequence[Mapping[str, object]]


def add_measurements(folder: Path, recipe: str, tables: Mapping[str, Rows], weights: Rows) -> None:
    """Add to a mixture's folder the run's recipe, its tables of scores and the mean weights, and
    tell in its card.
    """
    write_text(folder / RECIPE, recipe)
    write_text(
        folder / METRICS,
        json.dumps({"scores": tables, "mean_weights": weights}, indent=2, ensure_ascii=False),
    )
    write_card(folder)


def write_card(folder: Path) -> None:
    """Write README.md for the mixture in `folder`, from its configuration and from a run's files if
    there are any.
    """
    config = read_config(folder)
    measured = (
        json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if (folder / METRICS).is_file()
        else {}
    )
    recipe = (folder / RECIPE).read_text(encoding="utf-8") if (folder / RECIPE).is_file() else ""
    template = Template((files("loramix.storage") / "card.md").read_text(encoding="utf-8"))
    card = template.substitute(
        base=config.base,
        base_id=f"base_model: {config.base}\n" if _is_hub_id(config.base) else "",
        revision=f" at revision `{config.revision}`" if config.revision else "",
        count=len(config.experts),
        prompts=_prompts(config),
        experts=_lines(
            (each.name, f"`{each.source}`", ", ".join(each.lossy) or "nothing")
            for each in config.experts
        ),
        gate=_lines(_gate_settings(config)),
        weights=_section("Mean weights", [_table(measured.get("mean_weights", []))]),
        metrics=_section(
            "Scores on withheld test samples",
            [f"### {name}\n\n{_table(rows)}" for name, rows in measured.get("scores", {}).items()],
        ),
        recipe=_section("Recipe", [f"```yaml\n{recipe.strip()}\n```" if recipe else ""]),
        versions=", ".join(f"{name} {version}" for name, version in config.versions.items()),
    )
    write_text(folder / "README.md", card)


def _prompts(config: MixtureConfig) -> str:
    form = (
        "one user turn in the tokenizer's chat template" if config.prompting.chat else "plain text"
    )
    templates = "; ".join(
        f"{task}: `{template}`" for task, template in config.prompting.templates.items()
    )
    return f"{form}; {templates}" if templates else form


def _gate_settings(config: MixtureConfig) -> list[tuple[str, object]]:
    unused = set() if config.gate.activation == "top-k" else {"k"}
    return list(config.gate.model_dump(exclude=unused).items())


def _is_hub_id(name: str) -> bool:
    """Return whether a base is one of the Hub, whose cards may name no other: not a path, not an
    embedded model.
    """
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def _section(title: str, parts: Sequence[str]) -> str:
    filled = [part for part in parts if part]
    return "\n\n".join([f"\n## {title}", *filled]) + "\n" if filled else ""


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    return "\n".join(
        [
            f"| {' | '.join(rows[0])} |",
            "|---" * len(rows[0]) + "|",
            _lines(tuple(row.values()) for row in rows),
        ]
    )


def _lines(rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |" for row in rows
    )
