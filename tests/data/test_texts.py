"""Halves of characters, and the lines of poems."""

import json
from pathlib import Path

import pytest

from loramix.data.samples import prepare, read_manifest, write_manifest
from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.data.texts import lines_as_slashes, whole_characters
from loramix.errors import DataError

POEM = "an old silent pond / a frog jumps into the pond / splash silence again"


def make_task(source: Path, **changes: object) -> Task:
    fields = {"name": "t", "input_column": "a", "target_column": "b", "prompt": "{input}"}
    return Task.model_validate({**fields, "source": str(source), **changes})


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps({"a": a, "b": b}) for a, b in rows))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 😀", "plain 😀"),
        ("joined \ud83d\ude00", "joined 😀"),
        ("cut at the end \ud83d", "cut at the end \ufffd"),
        ("\ude00 without its first", "\ufffd without its first"),
        ("two firsts \ud83d\ud83d\ude00", "two firsts \ufffd😀"),
        ("the wrong way round \ude00\ud83d.", "the wrong way round \ufffd\ufffd."),
    ],
)
def test_pairs_are_joined_and_halves_replaced(text: str, expected: str) -> None:
    assert whole_characters(text) == expected


def test_halves_of_characters_reach_the_manifest_replaced(tmp_path: Path) -> None:
    rows = [(f"post {number} \ud83d", f"title {number} \udcb2") for number in range(60)]
    task = make_task(write_jsonl(tmp_path / "a.jsonl", rows))
    prepared = prepare([task], samples=None, seed=0)
    write_manifest(tmp_path / "samples.parquet", prepared)
    for sample in read_manifest(tmp_path / "samples.parquet"):
        assert sample.input.endswith(" \ufffd")
        assert sample.target.endswith(" \ufffd")


def test_halves_of_characters_in_choices_are_replaced(tmp_path: Path) -> None:
    row = {"a": "which?", "b": "A", "choices": '["\\ud83d", "\\ud83d\\ude00"]'}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"b": 1}))
    read = load_rows(make_task(tmp_path / "a.jsonl", choices_column="choices"))
    assert read == [("which? \\n (A) \ufffd (B) 😀", "😀")]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028", "\n\n", " /\n", "  \n\t"])
def test_line_breaks_of_a_poem_become_slashes(line_break: str) -> None:
    assert lines_as_slashes(POEM.replace(" / ", line_break) + "\n") == POEM


def test_a_text_of_one_line_stays_as_it_is() -> None:
    assert lines_as_slashes(POEM) == POEM
    assert lines_as_slashes("one / or / more\n").strip() == "one / or / more"


@pytest.mark.parametrize(
    ("whitespace", "expected"),
    [
        ("keep", " {n}\nof the  pond\n"),
        ("lines", " {n} / of the pond / "),
        ("collapse", " {n} of the pond "),
    ],
)
def test_the_lines_of_targets_are_kept_written_as_slashes_or_joined(
    whitespace: str, expected: str, tmp_path: Path
) -> None:
    rows = [(f"word {n}", f"poem {n}\r\nof the  pond\r\nin three lines") for n in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    task = make_task(source, cleaning={"whitespace": whitespace})
    for sample in prepare([task], samples=None, seed=0)["t"].samples:
        assert expected.format(n=sample.input.split()[1]) in sample.target


@pytest.mark.parametrize("target", ["a title of papers {}", "five\nlines\nof a\npoem\n{}"])
def test_the_metric_haiku_refuses_references_of_another_form(target: str, tmp_path: Path) -> None:
    rows = [(f"word {number}", target.format(number)) for number in range(60)]
    task = make_task(write_jsonl(tmp_path / "a.jsonl", rows), metrics=("haiku",))
    with pytest.raises(
        DataError, match=r"task 't': 0% of the 60 references have three lines.*' / '"
    ):
        prepare([task], samples=None, seed=0)
    plain = task.model_copy(update={"metrics": ("rouge",)})
    assert prepare([plain], samples=None, seed=0)["t"].counts["kept"] == 60


@pytest.mark.parametrize(
    "poem",
    [
        "古池や{} / 蛙飛び込む / 水の音",
        "старый пруд {}\nпрыгнула лягушка\nвсплеск",
        "고요 {} / 개구리 / 물",
    ],
)
def test_the_metric_haiku_refuses_references_in_other_scripts(poem: str, tmp_path: Path) -> None:
    rows = [(f"word {number}", poem.format(number)) for number in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"'t': 100% of the 60 references are in another script.* English syllables"
    ):
        prepare([make_task(source, metrics=("rouge", "haiku"))], samples=None, seed=0)
    assert prepare([make_task(source, metrics=("rouge", "chrf"))], samples=None, seed=0)


def test_some_poems_in_other_scripts_and_accents_are_no_reason_to_refuse(tmp_path: Path) -> None:
    rows = [(f"word {number}", f"café {number} / déjà vu / naïveté") for number in range(40)]
    rows += [(f"mot {number}", f"古池や {number} / 蛙 / 水の音") for number in range(20)]
    task = make_task(write_jsonl(tmp_path / "a.jsonl", rows), metrics=("haiku",))
    assert len(prepare([task], samples=None, seed=0)["t"].samples) == 60
