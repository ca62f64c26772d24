"""Files as spreadsheets, Windows programs and scrapers write them: read, or refused in words."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from loramix.data.sources import load_rows
from loramix.data.tasks import Task

PAPER = "the quiet report of the river and its stones " * 3300  # 148,500 characters


def make_task(source: Path, **changes: object) -> Task:
    fields = {"name": "t", "input_column": "text", "target_column": "title", "prompt": "{input}"}
    return Task.model_validate({**fields, "source": str(source), **changes})


# --- long documents


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_documents_of_any_length_are_read(name: str, tmp_path: Path) -> None:
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "title"), (PAPER, "long"), ("short", PAPER)])
    before = csv.field_size_limit()
    assert load_rows(make_task(tmp_path / name)) == [(PAPER, "long"), ("short", PAPER)]
    assert csv.field_size_limit() == before


def test_long_choices_in_a_csv_file_are_read(tmp_path: Path) -> None:
    rows = [("text", "title", "choices"), ("which?", "B", json.dumps({"A": "short", "B": PAPER}))]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    read = load_rows(make_task(tmp_path / "a.csv", choices_column="choices"))
    assert read == [(f"which? \\n (A) short (B) {PAPER}", PAPER)]
