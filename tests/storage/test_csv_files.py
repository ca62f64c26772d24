"""CSV files with fields of any length."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramix.storage.files import long_fields, read_csv, write_csv

PAPER = "the quiet report of the river and its stones " * 3300  # 148,500 characters


def test_long_fields_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    write_csv(tmp_path / "a.csv", ["input", "generated"], [[PAPER, "x"], ["y", PAPER]])
    read = read_csv(tmp_path / "a.csv")
    assert read == [{"input": PAPER, "generated": "x"}, {"input": "y", "generated": PAPER}]
    assert csv.field_size_limit() == before


def test_the_limit_is_put_back_after_an_error() -> None:
    before = csv.field_size_limit()
    with pytest.raises(OSError, match="gone"), long_fields():
        raise OSError("gone")
    assert csv.field_size_limit() == before


def test_threads_that_read_at_once_do_not_end_each_others_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    write_csv(tmp_path / "a.csv", ["input"], [[PAPER]] * 20)
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(read_csv, [tmp_path / "a.csv"] * 12))
    assert all(rows == [{"input": PAPER}] * 20 for rows in read)
    assert csv.field_size_limit() == before
