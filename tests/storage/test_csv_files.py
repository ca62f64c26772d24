"""Files of texts: every writer keeps odd texts as they are, or refuses them in words."""

import csv
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loramix.data.samples import Prepared, Sample, read_manifest, write_manifest
from loramix.errors import DataError
from loramix.report.comparison import comparison_page
from loramix.report.content import ComparisonReport, ComparisonSample, RunReport, RunSample
from loramix.report.run import run_page
from loramix.storage.files import long_fields, read_csv, write_csv, write_text

PAPER = "the quiet report of the river and its stones " * 3300  # 148,500 characters


def test_a_negative_zero_is_zero(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["weight", "text"], [[-0.0, "-0.0"], [-0.5, None]])
    assert (tmp_path / "a.csv").read_text().split() == ["weight,text", "0.0,-0.0", "-0.5,"]


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


# --- odd texts and every writer of texts

ODD = {
    "long": "river / " * 25_000,
    "line breaks": "def f(x):\n    if x:\n\n        return x / 2\n",
    "Windows line ends": "one\r\ntwo\r\n",
    "Mac line ends": "one\rtwo",
    "other line ends": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "white space": " \t two  spaces\u00a0\u3000 ",
    "quotes": '"a", \'b\' "" `c`',
    "delimiters": ",;\t|,",
    "backslashes": "a\\nb\\",
    "formula": '=HYPERLINK("https://example.org")',
    "other formulas": "+1-1@SUM(A1)",
    "emojis": "👨‍👩‍👧👍🏽🇩🇪",
    "right to left": "\u202eمرحبا\u202c עברית",
    "replacement": "cut \ufffd here",
    "mark": "\ufeffstarts with a mark",
    "control": "\x01\x1b[31mred\x7f",
    "markup": "<script>alert(1)</script> &amp; </textarea> {{ 1 }}",
    "NUL": "a\0b",
    "none": "None",
    "empty": "",
}
HALVES = {
    "high": "cut \ud83d",
    "low": "\udc4d cut",
    "swapped": "\udc4d\ud83d",
    "long": "a" * 9000 + "\ud83d",
}


def through_csv(text: str, folder: Path) -> str:
    write_csv(folder / "a.csv", ["input", "generated"], [["first", text], [text, "last"]])
    first, last = read_csv(folder / "a.csv")
    assert (first["input"], last["generated"]) == ("first", "last")
    assert first["generated"] == last["input"]
    return first["generated"]


def through_one_column(text: str, folder: Path) -> str:
    write_csv(folder / "a.csv", ["generated"], [[text], [text]])
    first, last = read_csv(folder / "a.csv")
    assert first == last
    return first["generated"]


def through_json(text: str, folder: Path) -> str:
    write_text(folder / "a.json", json.dumps({text: [text]}, ensure_ascii=False))
    (item,) = json.loads((folder / "a.json").read_bytes()).items()
    assert item == (item[0], [item[0]])
    return str(item[0])


def through_text(text: str, folder: Path) -> str:
    write_text(folder / "a.txt", text)
    return (folder / "a.txt").read_bytes().decode()


def through_manifest(text: str, folder: Path) -> str:
    sample = Sample("task", "id", "test", text, text)
    write_manifest(folder / "a.parquet", {"task": Prepared([sample], {})})
    (read,) = read_manifest(folder / "a.parquet")
    assert read.input == read.target
    return read.input


class Shown(HTMLParser):
    """The texts that a page shows: those of its innermost elements of class `text`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.depth, self.texts = 0, []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.depth or ("class", "text") in attrs:
            self.depth += 1
            self.texts += [""] if self.depth == 1 else []

    def handle_endtag(self, tag: str) -> None:
        self.depth -= self.depth > 0

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.texts[-1] += data


def through_page_of_a_run(text: str, folder: Path) -> str:
    samples = {"task": [RunSample(text, text, {"base": text})]}
    report = RunReport("title", [], [], {}, [], samples, "")
    return shown(run_page(report), text, folder)


def through_page_of_a_comparison(text: str, folder: Path) -> str:
    samples = [ComparisonSample("named", "task", text, text, {"base": text})]
    report = ComparisonReport("title", [], [], [], [], None, [], {}, {}, samples, "")
    return shown(comparison_page(report), text, folder)


def shown(page: str, text: str, folder: Path) -> str:
    write_text(folder / "a.html", page)
    texts = Shown((folder / "a.html").read_bytes().decode()).texts
    if not text:
        assert texts == []
        assert page.count("(empty)") == 3
        return ""
    assert len(texts) == 3
    assert len(set(texts)) == 1
    return texts[0].replace("\u2400", "\0")  # a symbol stands for NUL, which HTML lacks


WRITERS = [
    through_csv,
    through_one_column,
    through_json,
    through_text,
    through_manifest,
    through_page_of_a_run,
    through_page_of_a_comparison,
]


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_odd_texts_are_kept(writer: Callable[[str, Path], str], text: str, tmp_path: Path) -> None:
    assert writer(text, tmp_path) == text


@pytest.mark.parametrize("text", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_halves_of_characters_are_refused_in_words_and_leave_nothing(
    writer: Callable[[str, Path], str], text: str, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"cannot write .*U\+D.* one half of a character"
    ) as refused:
        writer(text, tmp_path)
    assert len(str(refused.value)) < 500
    assert not list(tmp_path.iterdir())
