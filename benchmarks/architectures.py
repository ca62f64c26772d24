"""Which promises a mixture keeps on which architecture of transformers.

python benchmarks/architectures.py                   all of them, into docs/architectures.md
python benchmarks/architectures.py llama zamba2      these alone, printed
"""

import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from architecture_checks import (
    CHECKS,
    Architecture,
    Cell,
    architecture,
    attention_layers,
    base_cells,
    cells,
)
from tiny_architectures import architectures, tiny_model
from transformers import PreTrainedModel

from loramix import GateConfig
from loramix.config import Scope

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
GATES: dict[str, dict[str, Any]] = {
    "prompt": {"context": "prompt"},
    "together": {"first_pass": True, "pooling": "attention"},
    "running": {"context": "running"},
    "token": {"context": "token"},
}
SCOPES: tuple[Scope, ...] = ("layer", "block", "model")
Outcome = dict[tuple[str, str, Scope], Cell]  # by check, gates and scope


HEAD = """# Architectures

Which promises a mixture keeps on which architecture of transformers' causal and encoder-decoder
classes, by

```
python benchmarks/architectures.py
```

Every model is tiny and random ({built} of {all} could be built; the end of this page says why the
others could not); its gates are random and strong, and so are its two adapters (of all linear
layers, and of attention). Four checks are made with gates of each context (`prompt`, `running`,
`token`), and with prompt gates that decide `together` by a first pass and attention, as
`loramix mix` makes them. Each compares two ways that should give the same logits:

- *one adapter*: weight 1 for one expert, and PEFT with that adapter;
- *padding*: a row in a padded batch, and alone;
- *cache*: generation in steps with a cache, and one pass;
- *training*: a pass with labels in training mode, and scoring.

A cell holds the outcomes with a gate for every layer, every block and the model; one word stands
for all three. *exact*: the largest difference is below 0.001 standard deviations of the logits;
*base*: the base itself does not keep this promise; *refused*: in words, see below; a number is a
difference that should not be.

A type that has both a causal and an encoder-decoder class is built as a causal one. Where adapters
of all linear layers are refused, the row is that of two adapters of attention. In training mode
gemma3n reads one matrix of its layers without calling the layer, so that PEFT's adapters of it act
in scoring alone; phimoe's router draws noise there.

Of laguna's shared experts PEFT does not load what it saved ("missing adapter keys"), so its numbers
are not those of its own file; a mixture reads all of it.

{versions}
"""


@dataclass(frozen=True)
class Row:
    """All cells of one architecture.

    refusal: the words with which all-linear adapters were refused. unbuilt: why there is no model.
    """

    name: str
    cells: Outcome
    refusal: str = ""
    unbuilt: str = ""

    def counts(self) -> Counter[str]:
        """Return the number of cells of each verdict."""
        return Counter(cell.verdict for cell in self.cells.values())

    def shown(self, check: str, gates: str) -> str:
        """Return the outcomes at all scopes, in a few words."""
        words = []
        for scope in SCOPES:
            cell = self.cells[check, gates, scope]
            words.append(cell.detail if cell.verdict == "wrong" else cell.verdict)
        return words[0] if len(set(words)) == 1 else " / ".join(words)

    def notes(self) -> list[str]:
        """Return what is not exact, and where."""
        notes = [f"all-linear adapters: {self.refusal}"] if self.refusal else []
        places: dict[str, set[str]] = {}
        checks: dict[str, set[str]] = {}
        for (check, gates, scope), cell in self.cells.items():
            if cell.verdict != "exact":
                words = " ".join(f"{cell.verdict}: {cell.detail}".split())[:400]
                places.setdefault(words, set()).add(f"{gates}/{scope}")
                checks.setdefault(words, set()).add(check)
        for words, found in places.items():
            where = (
                "everywhere" if len(found) == len(GATES) * len(SCOPES) else ", ".join(sorted(found))
            )
            notes.append(f"{', '.join(sorted(checks[words]))} ({where}): {words}")
        return notes


def outcome(base: PreTrainedModel) -> tuple[Outcome, str]:
    """Return all cells of an architecture, and the words of a refusal of all-linear adapters.

    Where a mixture of these is refused, the cells are those of attention-only adapters.
    """
    own = base_cells(base)
    with tempfile.TemporaryDirectory() as temporary:
        made = architecture(base, Path(temporary) / "all", "all-linear")
        first = cells(made, GateConfig(context="token"))
        refusal = first["padding"].detail if first["padding"].verdict == "refused" else ""
        if refusal:
            made = architecture(base, Path(temporary) / "attention", attention_layers(base))
        return _all_cells(made, own), refusal


def _all_cells(made: Architecture, own: dict[str, Cell]) -> Outcome:
    found: Outcome = {}
    for gates, scope in product(GATES, SCOPES):
        for check, cell in cells(made, GateConfig(scope=scope, **GATES[gates])).items():
            inexact = check in own and own[check].verdict != "exact"
            if inexact and cell.verdict in ("wrong", "fails"):
                cell = Cell("base", own[check].detail)
            found[check, gates, scope] = cell
    return found


def checked(name: str) -> Row:
    """Return the row of one architecture, and print it."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        row = Row(name, *outcome(tiny_model(name)))
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        row = Row(name, {}, "", words[:160])
    seconds = time.perf_counter() - started
    lines = [f"{name}: {row.unbuilt or dict(row.counts())} {seconds:.1f} s", *row.notes()]
    print("\n    ".join(lines), flush=True)
    return row


def page(rows: list[Row]) -> str:
    """Return the table in Markdown, with the words of all that is not exact."""
    built = [row for row in rows if not row.unbuilt]
    total = sum((row.counts() for row in built), Counter())
    versions = ", ".join(f"{name} {version(name)}" for name in ("loramix", "peft", "transformers"))
    checks = ["one adapter", *CHECKS]
    columns = [(check, gates) for check in checks for gates in GATES]
    head = " | ".join(f"{check}, {gates}" for check, gates in columns)
    lines = [HEAD.format(versions=versions, built=len(built), all=len(rows))]
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in total.most_common()) + "\n")
    lines.append(f"| architecture | adapters | {head} |")
    lines.append("|" + "---|" * (len(columns) + 2))
    for row in built:
        shown = " | ".join(row.shown(check, gates) for check, gates in columns)
        adapters = "attention" if row.refusal else "all-linear, attention"
        lines.append(f"| {row.name} | {adapters} | {shown} |")
    lines.append("\n## What is not exact\n")
    for row in built:
        lines += [f"- {row.name}: {note}" for note in row.notes()]
    lines.append("\n## Not built\n")
    lines += [f"- {row.name}: {row.unbuilt}" for row in rows if row.unbuilt]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check, print, and write the page if all were asked for."""
    chosen = sys.argv[1:] or architectures()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(checked, chosen))
    total = sum((row.counts() for row in rows), Counter())
    print(dict(total))
    if len(sys.argv) == 1:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
