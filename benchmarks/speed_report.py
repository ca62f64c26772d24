"""The tables, bars and plot of a speed.json."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, object]


@dataclass(frozen=True)
class Bar:
    """A ratio of two rows of one case, and its upper limit."""

    what: str
    case: str
    system: str
    other: str
    limit: float
    experts: int = 2
    other_experts: int = 2


L1 = "decode llama-135m, E=2, batch 1, 16 tokens, 128 new"
L8 = "decode llama-135m, E=2, batch 8, 16 tokens, 64 new"
TOP = "decode llama-135m, E=2/4/8/16/64/256, batch 1, 16 tokens, 64 new"
TOP_FOLDED = "decode llama-135m, E=2/64/256, batch 1, 16 tokens, 64 new"
TOP_8 = "decode llama-135m, E=2/4/8/16/64/256, batch 8, 16 tokens, 64 new"
X = "decode llama-135m, E=4, batch 1, 16 tokens, 128 new"
T1 = "decode t5-small, E=4, batch 1, 16 tokens, 64 new"
F4 = "forward llama-135m, E=4, batch 8, 128 tokens"
S4 = "training llama-135m, E=4, batch 8, 128 tokens"
S2 = "training llama-135m, E=2, batch 8, 128 tokens"
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
    """Return a table per case: medians, ratios to the first row, and their spread over rounds."""
    made = []
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        own = [row for row in rows if row["case"] == case]
        lines = [f"**{case}**", "", "| system | E | wall, s | ratio | spread | CPU, s | ratio |"]
        lines.append("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
        for row in own:
            wall, low, high = ratio(row, own[0])
            cpu = ratio(row, own[0], "cpu")[0]
            seconds, used = (statistics.median(row[key]) for key in ("wall", "cpu"))
            clock = f"{seconds:.3f} | {wall:.3f} | {low:.3f} to {high:.3f}"
            lines.append(
                f"| {row['system']} | {row['experts']} | {clock} | {used:.3f} | {cpu:.3f} |"
            )
        made.append("\n".join(lines))
    return made


def bars(rows: Sequence[Row]) -> str:
    """Return the table of those bars that were measured."""
    head = "| | ratio | spread | at most | |"
    lines = ["**Bars**", "", head, "| --- | ---: | --- | ---: | --- |"]
    measured = {(row["case"], row["system"], row["experts"]): row for row in rows}
    for bar in BARS:
        row = measured.get((bar.case, bar.system, bar.experts))
        other = measured.get((bar.case, bar.other, bar.other_experts))
        if row is not None and other is not None:
            middle, low, high = ratio(row, other)
            verdict = "holds" if middle <= bar.limit else "does not hold"
            spread = f"{low:.3f} to {high:.3f}"
            lines.append(f"| {bar.what} | {middle:.3f} | {spread} | {bar.limit:.3f} | {verdict} |")
    return "\n".join(lines)


def ratio(row: Row, other: Row, key: str = "wall") -> tuple[float, float, float]:
    """Return the ratio of the medians, and the smallest and largest ratio of one round."""
    mine, theirs = row[key], other[key]
    turns = [a / b for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(mine) / statistics.median(theirs), min(turns), max(turns)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw the ratio of every system to the first of its case, one panel for each case."""
    systems = Counter(str(row["case"]) for row in rows)
    cases = [case for case, count in systems.items() if count > 1]  # in the order of the rows
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
        for y, value in enumerate(values):
            axis.text(value[0], y, f" {value[0]:.2f}", va="center", fontsize=8)
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
