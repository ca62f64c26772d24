"""YAML that stands for more than it says is refused, at once."""

import gzip
from pathlib import Path

import pytest

from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.errors import DataError, RecipeError
from loramix.experiment.reading import load_recipe
from loramix.storage import texts
from loramix.storage.yaml_texts import read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("&a {b: {c: *a}}", "holds itself"),
        ("[" * 5000 + "]" * 5000, "nested more than 100 deep"),
        ("a: *b", "undefined alias"),
        ("a: [", "expected"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a" * 1_000_001, "more than 1,000,000 characters"),
    ],
)
def test_what_would_never_end_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read_yaml(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="is no valid YAML"):
        load_recipe(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("value", ["{[a]: b}", "2001-99-99", "&a [*a]", "0x", "{a: {b}: c}"])
def test_odd_values_of_overrides_are_refused_in_words(value: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("tiny", [f"gate.hidden={value}"])


def test_aliases_of_ordinary_size_are_read() -> None:
    assert read_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert read_yaml("") is None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz", "a.tsv"])
def test_a_line_that_unpacks_beyond_all_bounds_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_LONGEST_LINE", 10_000)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("text\n" + "x" * 20_000)
    task = Task(name="t", source=str(tmp_path / name), input_column="text", target_column="text")
    with pytest.raises(DataError, match=r"line [12] .*10,000 characters|line 1 is no JSON"):
        load_rows(task)
