"""Files as spreadsheets, Windows programs and scrapers write them: read, or refused in words."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.errors import DataError

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


# --- encodings and layouts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,title\nüber,x\n".encode("cp1252"), "a.csv: line 2 .*'ü' in Windows-1252"),
        ("a.jsonl", '{"text": "é"}\n'.encode("latin-1"), "line 1 is not in UTF-8: byte 0xe9"),
        ("a.csv.gz", gzip.compress(b"text,title\nx,\x93y\x94\n", mtime=0), "line 2 .* 0x93.*UTF-8"),
        ("a.csv", "text,title\nx,y\n".encode("utf-16"), "mark of UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-32"), "mark of UTF-32; save it as UTF-8"),
        ("a.csv", "text,title\nx,y\n".encode("utf-16-le"), "line 1 holds a NUL character"),
        ("a.csv", b"text;title\nx;y\n", "separated by semicolons"),
        ("a.csv", b"text\ttitle\nx\ty\n", "separated by tabs"),
        ("a.csv", b"text,title,title\nx,y,z\n", "several columns 'title'; rename all but one"),
        ("a.jsonl", b'[\n{"text": "x"}\n]\n', r"line 1 is no JSON.*not an array"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl: line 2 is no JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"task 't': .*{message}"):
        load_rows(make_task(tmp_path / name))


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, content in (("a.csv", "text,title\r\nä,b\r\n"), ("b.jsonl", '{"text": "ä"}')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig", newline="")
        column = "title" if name == "a.csv" else "text"
        assert load_rows(make_task(tmp_path / name, target_column=column))[0][0] == "ä"
