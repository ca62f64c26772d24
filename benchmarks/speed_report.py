"""The tables, bars and plot of a speed.json."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, object]


@dataclass(frozen=True)
class Bar:
    """A ratio of two rows of one case, and what it may be at most."""

    what: str
    case: str
    system: str
    other: str
    limit: float
    experts: int = 2
    other_experts: int = 2


L1, L8 = (
    "decode llama-135m, E=2, batch 1, 16 tokens, 128 new",
    "decode llama-135m, E=2, batch 8, 16 tokens, 64 new",
)
TOP = "decode llama-135m, E=2/4/8/16/64/256, batch 1, 16 tokens, 64 new"
TOP_FOLDED = "decode llama-135m, E=2/64/256, batch 1, 16 tokens, 64 new"
TOP_8 = "decode llama-135m, E=2/4/8/16/64/256, batch 8, 16 tokens, 64 new"
X = "decode llama-135m, E=4, batch 1, 16 tokens, 128 new"
T1 = "decode t5-small, E=4, batch 1, 16 tokens, 64 new"
F4 = "forward llama-135m, E=4, batch 8, 128 tokens"
S4, S2 = (
    "training llama-135m, E=4, batch 8, 128 tokens",
    "training llama-135m, E=2, batch 8, 128 tokens",
)
BARS = [
    Bar("decoding, batch 1, to the base", L1, "loramix", "base", 1.03),
    Bar("decoding, batch 8, to the base", L8, "loramix", "base", 1.15),
    *[
        Bar(f"top-2 of {e}, {how}, to E=2", case, system, system, 1.10, experts=e)
        for how, case, system in (
            ("folded", TOP_FOLDED, "loramix top-2"),
            ("not folded", TOP, "loramix top-2, not folded"),
            ("batch 8", TOP_8, "loramix top-2"),
        )
        for e in (64, 256)
    ],
    Bar("decoding to X-LoRA", X, "loramix", "X-LoRA", 1 / 8, 4, 4),
    Bar("forward pass to X-LoRA", F4, "loramix", "X-LoRA", 1 / 2, 4, 4),
    Bar("gate-training step to X-LoRA", S4, "loramix", "X-LoRA", 0.6, 4, 4),
    Bar("decoding to Arrow", T1, "loramix", "Arrow", 0.8, 4, 4),
    Bar("gate-training step to a PEFT LoRA step", S2, "loramix", "PEFT LoRA", 1.15),
]


def write_report(folder: Path) -> str:
    """Write speed.md and speed.png from the speed.json in `folder`, and return the text."""
    found = json.loads((folder / "speed.json").read_text())
    rows: list[Row] = found["rows"]
    text = "\n\n".join(
        [
            ", ".join(f"{key} {value}" for key, value in found["machine"].items()),
            *tables(rows),
            bars(rows),
        ]
    )
    (folder / "speed.md").write_text(text + "\n")
    plot(rows, folder / "speed.png")
    return text


def tables(rows: Sequence[Row]) -> list[str]:
    """Return one table for every case: medians, ratios to its first row, and the spread of those
    over the rounds.
    """
    made = []
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        own = [row for row in rows if row["case"] == case]
        lines = [f"**{case}**", "", "| system | E | wall, s | ratio | spread | CPU, s | ratio |"]
        lines.append("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
        for row in own:
            wall, low, high = ratio(row, own[0])
            cpu = ratio(row, own[0], "cpu")[0]
            seconds, used = (statistics.median(row[key]) for key in ("wall", "cpu"))
            lines.append(
                f"| {row['system']} | {row['experts']} | {seconds:.3f} | {wall:.3f} | {low:.3f} "
                f"to {high:.3f} "
                f"| {used:.3f} | {cpu:.3f} |"
            )
        made.append("\n".join(lines))
    return made


def bars(rows: Sequence[Row]) -> str:
    """Return the table of those bars that were measured."""
    lines = [
        "**Bars**",
        "",
        "| | ratio | spread | at most | |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for bar in BARS:
        pair = [
            next(
                (
                    r
                    for r in rows
                    if (r["case"], r["system"], r["experts"]) == (bar.case, system, experts)
                ),
                None,
            )
            for system, experts in ((bar.system, bar.experts), (bar.other, bar.other_experts))
        ]
        if pair[0] is not None and pair[1] is not None:
            middle, low, high = ratio(pair[0], pair[1])
            verdict = "holds" if middle <= bar.limit else "does not hold"
            lines.append(
                f"| {bar.what} | {middle:.3f} | {low:.3f} to {high:.3f} | {bar.limit:.3f} | "
                f"{verdict} |"
            )
    return "\n".join(lines)


def ratio(row: Row, other: Row, key: str = "wall") -> tuple[float, float, float]:
    """Return the ratio of the medians, and the least and largest ratio of one round."""
    mine, theirs = row[key], other[key]
    turns = [a / b for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(mine) / statistics.median(theirs), min(turns), max(turns)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw the ratio of every system to the first of its case, one panel for each case."""
    cases = [
        case
        for case in dict.fromkeys(str(r["case"]) for r in rows)
        if len([r for r in rows if r["case"] == case]) > 1
    ]
    columns = 2
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(12, 2.3 * lines), squeeze=False, layout="constrained"
    )
    for axis, case in zip(axes.flat, cases, strict=False):
        own = [row for row in rows if row["case"] == case]
        several = len({row["experts"] for row in own}) > 1
        names = [f"{row['system']}{', E=' + str(row['experts']) if several else ''}" for row in own]
        values = [ratio(row, own[0]) for row in own]
        colours = ["#2a6f97" if "loramix" in name else "#b8b8b8" for name in names]
        axis.barh(names, [value[0] for value in values], color=colours)
        for place, value in enumerate(values):
            axis.text(value[0], place, f" {value[0]:.2f}", va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_title(case, fontsize=8)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    figure.supxlabel("wall time, ratio to the first system of the panel", fontsize=9)
    figure.savefig(file, dpi=120)
    plt.close(figure)
