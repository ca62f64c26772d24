"""One table of odd files, of every kind that is read: each is read as it stands, or refused in
words that name the file and the place, before anything is trained.
"""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.errors import DataError, RecipeError
from loramix.experiment.reading import load_recipe

LONG = "a word " * 30_000  # 210,000 characters: csv fields end at 131,072
LINE = json.dumps({"text": "a b", "title": "c"})
HALF = '{"text": "cut \\ud83d", "title": "c \\udcb2"}'
PLAIN = [("a b", "c")]
UTF_8 = "save it as UTF-8"


def parquet_of(**columns: list[object]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def spoilt(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


READ: list[tuple[str, bytes, list[tuple[str, str]]]] = [
    # marks and line ends
    ("mark.csv", spoilt("text,title\r\na b,c\r\n", "utf-8-sig"), PLAIN),
    ("mark.tsv", spoilt("text\ttitle\na b\tc\n", "utf-8-sig"), PLAIN),
    ("mark.jsonl", spoilt(LINE, "utf-8-sig"), PLAIN),
    ("mark.json", spoilt(LINE + "\n", "utf-8-sig"), PLAIN),
    ("mac.csv", b"text,title\ra b,c\r", PLAIN),
    ("no-last-line-end.csv", b"text,title\na b,c", PLAIN),
    # fields
    ("long.csv", f"text,title\n{LONG},c\n".encode(), [(LONG, "c")]),
    ("long.csv.gz", gzip.compress(f"text,title\n{LONG},c\n".encode(), mtime=0), [(LONG, "c")]),
    ("long.tsv", f"text\ttitle\na b\t{LONG}\n".encode(), [("a b", LONG)]),
    ("long.jsonl", json.dumps({"text": LONG, "title": "c"}).encode(), [(LONG, "c")]),
    ("long.parquet", parquet_of(text=[LONG], title=["c"]), [(LONG, "c")]),
    ("lines.csv", b'text,title\n"def f():\n\tpass\n",c\n', [("def f():\n\tpass\n", "c")]),
    ("quotes.csv", b'text,title\n"say ""a, b""",c\n', [('say "a, b"', "c")]),
    (
        "separators.jsonl",
        spoilt('{"text": "a\u2028b\u0085", "title": "c"}\n', "utf-8"),
        [("a\u2028b\x85", "c")],
    ),
    ("halves.jsonl", HALF.encode(), [("cut \ufffd", "c \ufffd")]),
    ("halves.jsonl.gz", gzip.compress(HALF.encode(), mtime=0), [("cut \ufffd", "c \ufffd")]),
    ("numbers.csv", b"text,title\n007,1e3\nNA,null\n", [("007", "1e3"), ("NA", "null")]),
    ("numbers.jsonl", b'{"text": 7, "title": NaN}\n', [("7", "")]),
    ("nothing.parquet", parquet_of(text=[None, "a b"], title=["x", "c"]), [("", "x"), *PLAIN]),
    # layouts
    ("blank-lines.jsonl", f"\n{LINE}\n\n".encode(), PLAIN),
    ("blank-lines.csv", b"text,title\n\na b,c\n\n", PLAIN),
    ("short-row.csv", b"text,title\na b\na b,c\n", [("a b", ""), *PLAIN]),
    ("other-twice.csv", b"id,text,id,title\n1,a b,2,c\n", PLAIN),
    ("no-rows.parquet", parquet_of(text=[], title=[]), []),
    ("only-header.csv", b"text,title\n", []),
    ("upper.CSV", b"text,title\na b,c\n", PLAIN),
]

REFUSED: list[tuple[str, bytes, str]] = [
    # encodings
    ("ansi.csv", spoilt("text,title\nüber,c\n", "cp1252"), f"line 2 .*'ü' in Windows.*{UTF_8}"),
    ("ansi.tsv", spoilt("text\ttitle\nüber\tc\n", "cp1252"), f"line 2 .*{UTF_8}"),
    ("ansi.jsonl", spoilt('{"text": "é"}\n', "cp1252"), f"line 1 is not in UTF-8.*{UTF_8}"),
    ("wide.csv", spoilt("text,title\na b,c\n", "utf-16"), f"mark of UTF-16; {UTF_8}"),
    ("wide.tsv", spoilt("text\ttitle\na b\tc\n", "utf-16"), f"mark of UTF-16; {UTF_8}"),
    ("wide.json", spoilt(LINE, "utf-16"), f"mark of UTF-16; {UTF_8}"),
    ("unmarked.csv", spoilt("text,title\na b,c\n", "utf-16-le"), "line 1 holds a NUL character"),
    ("nul.csv", b"text,title\na\0b,c\n", "line 2 holds a NUL character"),
    ("nul.jsonl", f"{LINE}\n\0\n".encode(), "line 2 holds a NUL character"),
    # JSON
    ("array.jsonl", b'[\n{"text": "a b"}\n]\n', "line 1 is no JSON .*not an array: python"),
    ("array.json", f"[{LINE}]".encode(), "line 1 is no JSON object.*not an array: python"),
    ("pretty.json", b'{\n  "text": "a b"\n}', "line 1 is no JSON.*one whole object"),
    ("cut.jsonl", f'{LINE}\n{{"text": \n'.encode(), "cut.jsonl: line 2 is no JSON .*character"),
    ("scalar.jsonl", f"{LINE}\n\n7\n".encode(), "line 3 is no JSON object: 7"),
    ("key-twice.jsonl", b'{"text": "a", "text": "b"}', "line 1: .*several keys 'text'"),
    ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: "),
    ("list.jsonl", b'{"text": ["a"], "title": "c"}', "row 1: column 'text' must hold texts"),
    ("empty.jsonl", b"", "no column 'text' and 'title'; it has: none at all"),
    # sheets
    ("long-row.csv", b"text,title\na b,c,d\n", "line 2 has more cells than the header"),
    ("open.csv", b'text,title\n"a b,c\n', "line 2: .*quotation mark"),
    ("after-quote.tsv", b'text\ttitle\n"a" b\tc\n', "line 2: .*quotation mark"),
    ("twice.csv", b"text,title,title\na b,c,d\n", "several columns 'title'; rename all but one"),
    ("semicolons.csv", b"text;title\na b;c\n", "separated by semicolons: save it with commas"),
    ("commas.tsv", b"text,title\na b,c\n", "separated by commas: name it .csv"),
    ("spaces.csv", b"text, title\na b, c\n", r"no column 'title' \(did you mean ' title'\?\)"),
    ("empty.csv", b"", "it has: none at all"),
    ("sheet.xlsx", b"PK\x03\x04", "save the sheet as CSV"),
    ("notes.docx", b"PK\x03\x04", "no known kind; there are: .parquet, .csv"),
    # archives
    ("plain.csv.gz", b"text,title\na b,c\n", "cannot read .*plain.csv.gz"),
    ("cut.jsonl.gz", gzip.compress(LINE.encode() * 99, mtime=0)[:-20], "cannot read .*cut.jsonl"),
    ("cut.parquet", parquet_of(text=["a b"], title=["c"])[:-9], "cannot read .*cut.parquet"),
    ("twice.parquet", b"PAR1", "cannot read .*twice.parquet"),
]  # fmt: skip

RECIPE = "name: {name}\nbase: {{name: tiny-llama}}\ntasks: [demo-haiku, demo-title]\n"


def make_task(source: Path, **changes: object) -> Task:
    columns = {"input_column": "text", "target_column": "title"}
    return Task.model_validate({"name": "t", "source": str(source), **columns, **changes})


@pytest.mark.parametrize(("name", "content", "expected"), READ, ids=[name for name, *_ in READ])
def test_what_can_be_read_is_read_as_it_stands(
    name: str, content: bytes, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert load_rows(make_task(tmp_path / name)) == expected


@pytest.mark.parametrize(("name", "content", "said"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_read_is_refused_in_words(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)task 't': .*{said}"):
        load_rows(make_task(tmp_path / name))


@pytest.mark.parametrize(("name", "content", "said"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_a_format_is_looked_for_in_no_broken_file(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    """A recipe that leaves the format to the file is refused as it is read."""
    (tmp_path / name).write_bytes(content)
    recipe = tmp_path / "a.yaml"
    task = json.dumps({"name": "t", "source": str(tmp_path / name), "format": "prompt-completion"})
    recipe.write_text(f"name: a\nbase: {{name: tiny-llama}}\ntasks: [{task}]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="task 't': "):
        load_recipe(str(recipe))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_recipe_may_be_marked(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(RECIPE.format(name="tiny2").encode(encoding))
    assert load_recipe(str(tmp_path / "a.yaml")).name == "tiny2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RECIPE.format(name="bär").encode("cp1252"), f"line 1 .*'ä' in Windows-1252.*{UTF_8}"),
        (RECIPE.format(name="a").encode("utf-16-le"), "line 1 holds a NUL character"),
        (RECIPE.format(name="a").encode() + b"\0", "line 4 holds a NUL character"),
        (RECIPE.format(name="a").encode("utf-16")[:-1], f"damaged UTF-16.*{UTF_8}"),
        (b"name: a\nbase:\n\tname: tiny-llama\n", "indent with spaces"),
        (b"", "holds no settings"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_in_words(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        load_recipe(str(tmp_path / "a.yaml"))
