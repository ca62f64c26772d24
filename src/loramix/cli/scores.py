"""The score tables of a run, for the terminal."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loramix.stages.layout import read_csv

_TITLES = {"rouge": "ROUGE F1", "bertscore": "BERTScore F1", "syllables": "Haiku form", "test_loss": "Test loss"}


def show_scores(root: Path) -> None:
    """Print the score tables of the run in folder `root` to standard output, one row per model."""
    console = Console()
    for name, title in _TITLES.items():
        file = root / f"{name}.csv"
        rows = read_csv(file) if file.is_file() else []
        if not rows:
            continue
        columns = [column for column in rows[0] if column not in ("model", "encoder")]
        table = Table("model", title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in columns:
            table.add_column(_heading(column), justify="right", no_wrap=True)
        for row in rows:
            table.add_row(row["model"], *(_number(row[column]) for column in columns))
        console.print(table)


def _heading(column: str) -> str:
    """Break a heading at its spaces and underscores: eight columns of numbers fit 80 characters then."""
    return column.replace(" F1", "").replace(" ", "\n").replace("_", "\n")


def _number(text: str) -> str:
    value = float(text)
    return f"{value:.0f}" if value == round(value) and value > 1 else f"{value:.3f}"
