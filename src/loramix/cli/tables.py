"""Tables for the terminal: scores of a run, results of a comparison, weights of a prompt."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from loramix.assembly.verdict import ExpertVerdict
from loramix.experiment.sweep.results import RESULTS, VALIDATION
from loramix.metrics.measures import ORIGINS, SCORE_FILES
from loramix.mixture.explanation import Explanation
from loramix.storage.files import read_csv

_BAR = 10  # cells of a whole bar: a layer's full name and two experts fit into 80 columns


def show_scores(root: Path) -> None:
    """Print the score tables of the run in folder `root` to standard output, one row per model."""
    console = Console()
    for score_file in SCORE_FILES:
        title, file = f"{score_file.title} {score_file.unit}".strip(), root / score_file.file
        rows = read_csv(file) if file.is_file() else []
        if not rows:
            continue
        columns = [column for column in rows[0] if column not in ("model", *ORIGINS.values())]
        table = Table("model", title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in columns:
            table.add_column(_heading(column), justify="right", no_wrap=True)
        for row in rows:
            table.add_row(row["model"], *(_number(row[column]) for column in columns))
        console.print(table)


def show_comparison(folder: Path) -> None:
    """Print the verdict of the comparison in `folder`, and every model's combined score, to
    standard output.
    """
    console = Console()
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    words = {True: "holds", False: "does not hold", None: "undecided"}
    for claim in found["verdict"]:
        console.print(Text(f"{words[claim['holds']]}: {claim['text']}; {claim['evidence']}"))
    cells: dict[str, dict[str, float]] = {}
    # the mean over seeds comes after each seed's, and that over tasks after each task's
    for row in found["results"]:
        if row["measure"] == "combined":
            cells.setdefault(row["model"], {})[row["test_set"]] = row["value"]
    columns = list(dict.fromkeys(column for of_model in cells.values() for column in of_model))
    table = Table(
        "model", title="Combined score, mean over tasks", title_justify="left", box=SIMPLE_HEAD
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for model, of_model in cells.items():
        table.add_row(
            Text(model), *(f"{of_model[c]:z.3f}" if c in of_model else "" for c in columns)
        )
    console.print(table)


def show_sweep(root: Path, keys: Sequence[str]) -> None:
    """Print the settings of the sweep in `root`, values of `keys`, and their validation losses to
    standard output.
    """
    rows = read_csv(root / RESULTS)
    columns = [*keys, VALIDATION]
    table = Table(*columns, title="Settings by validation loss", box=SIMPLE_HEAD)
    for row in rows:
        loss = row[VALIDATION]
        table.add_row(*(Text(row[key]) for key in keys), f"{float(loss):.4f}" if loss else "–")
    Console().print(table)


def show_verdict(
    verdicts: Sequence[ExpertVerdict], warnings: Sequence[str], facts: Mapping[str, str]
) -> None:
    """Print the verdict on a mixture to standard output, and its warnings below."""
    console = Console()
    for name, value in facts.items():
        console.print(Text(f"{name}: {value}"))
    if verdicts:
        console.print(_routing_table(verdicts))
        answered = [each for each in verdicts if each.losses is not None]
        if answered:
            console.print(_losses_table(answered))
    for warning in warnings:
        console.print(Text(f"warning: {warning}"))


def _routing_table(verdicts: Sequence[ExpertVerdict]) -> Table:
    experts = list(verdicts[0].weights)
    title = "mean weight of each expert on held-out prompts"
    numbers = [Column(Text(name), justify="right") for name in experts]
    table = Table(Column("prompts of", no_wrap=True), *numbers, title=title, box=SIMPLE_HEAD)
    for each in verdicts:
        cells = [
            Text(f"{each.weights[name]:z.2f}", style="bold" if name == each.expert else "")
            for name in experts
        ]
        table.add_row(Text(each.expert), *cells)
    return table


def _losses_table(verdicts: Sequence[ExpertVerdict]) -> Table:
    columns = ("base", "uniform", "best other", "own", "mixture", "share of gain")
    table = Table(
        Column("examples of", no_wrap=True),
        *(Column(name, justify="right") for name in columns),
        title="loss per token on held-out answers",
        box=SIMPLE_HEAD,
    )
    for each in verdicts:
        if (losses := each.losses) is None:
            continue
        values = (losses.base, losses.uniform, losses.other, losses.own, losses.mixture)
        shown = [*values, losses.share_of_gain]
        cells = ["–" if value is None else f"{value:z.3f}" for value in shown]
        table.add_row(Text(each.expert), *cells)
    return table


def show_weights(explanation: Explanation) -> None:
    """Print the weights of every layer and their mean, and those of every token if tokens differ,
    to standard output.
    """
    console = Console()
    runs = list(_runs(explanation))
    layers = _weights_table("layer", explanation, runs)
    if len(runs) > 1:
        layers.add_section()
        layers.add_row("mean", *_bars(explanation.mean))
    console.print(layers)
    if explanation.tokens:
        tokens = [(repr(token), weights) for token, weights in explanation.tokens]
        console.print(_weights_table("token", explanation, tokens))


def _runs(explanation: Explanation) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield the weights of the layers, once for neighbours that have the same."""
    for weights, run in groupby(explanation.layers.items(), key=lambda each: each[1]):
        names = [name for name, _ in run]
        if len(names) == len(explanation.layers) > 1:
            yield f"all {len(names)} layers", weights
        else:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield names[0] + more, weights


def _weights_table(
    heading: str, explanation: Explanation, rows: Iterable[tuple[str, Sequence[float]]]
) -> Table:
    title = Text(f"weights for {explanation.prompt!r}")
    table = Table(Column(heading, no_wrap=True), *explanation.experts, title=title)
    for name, weights in rows:
        table.add_row(Text(name), *_bars(weights))
    return table


def _bars(weights: Sequence[float]) -> list[str]:
    return [f"{weight:z.2f} {'█' * round(weight * _BAR)}" for weight in weights]


def _heading(column: str) -> str:
    """Break a heading at its spaces and underscores: eight columns of numbers fit 80 characters
    then.
    """
    return column.replace(" F1", "").replace(" ", "\n").replace("_", "\n")


def _number(text: str) -> str:
    value = float(text)
    return f"{value:z.0f}" if value == round(value) and value > 1 else f"{value:z.3f}"
