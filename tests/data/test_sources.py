"""Sources of several files, of folders, of configurations, and with splits of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from loramix.data.samples import Prepared, prepare
from loramix.data.sources import load_rows, source_fingerprint
from loramix.data.tasks import Task
from loramix.errors import DataError
from loramix.experiment.reading import load_recipe

Rows = list[tuple[str, str]]


def make_task(source: object, **changes: object) -> Task:
    columns = {"input_column": "a", "target_column": "b"}
    return Task.model_validate({"name": "t", "source": source, **columns, **changes})


def write(path: Path, rows: Rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"a": source, "b": target}) for source, target in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def many(word: str, count: int) -> Rows:
    return [(f"{word} {number}", f"{word} poem {number}") for number in range(count)]


def prepared(task: Task, samples: int | None = None) -> Prepared:
    return prepare([task], samples=samples, seed=0)["t"]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like a data set on the Hub with two configurations."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, configs = tmp_path / "poems", ""
    for name in ("short", "long"):
        (folder / name).mkdir(parents=True)
        table = pyarrow.table({"a": [name], "b": [f"a {name} poem"]})
        parquet.write_table(table, folder / name / "train.parquet")
        configs += f"- config_name: {name}\n  data_files: {name}/*.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


# --- places


@pytest.mark.parametrize("kind", ["list", "pattern", "deep pattern", "folder"])
def test_several_files_are_read_in_their_order(kind: str, tmp_path: Path) -> None:
    names = [write(tmp_path / "data" / f"{name}.jsonl", many(name, 2)) for name in "ab"]
    (tmp_path / "data" / ".hidden").write_text("x")
    source = {
        "list": names[::-1],
        "pattern": f"{tmp_path}/data/[ab].jsonl",
        "deep pattern": f"{tmp_path}/**/*.jsonl",
        "folder": f"{tmp_path}/data",
    }[kind]
    expected = many("a", 2) + many("b", 2)
    rows = load_rows(make_task(source))
    assert rows == (expected[2:] + expected[:2] if kind == "list" else expected)
    before = source_fingerprint(make_task(source))
    write(tmp_path / "data" / "b.jsonl", many("c", 2))
    assert source_fingerprint(make_task(source)) != before


def test_files_of_a_folder_are_read_as_files_are(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Poems\n")
    (tmp_path / "poems.csv").write_text("a,b\n007,NA\n")
    assert load_rows(make_task(str(tmp_path))) == [("007", "NA")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}/*.csv", "no file fits .*csv"),
        (["{}/a.jsonl", "{}/aa.jsonl"], "no such file: .*did you mean 'a.jsonl'"),
        (["{}/a.jsonl", "{}"], "a list of sources holds files alone"),
        (["{}/a.jsonl", "someone/poems"], "holds files alone, and someone/poems is no file"),
    ],
)
def test_places_that_lead_nowhere_are_named(
    source: str | list[str], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", many("a", 2))
    given = [place.format(tmp_path) for place in ([source] if isinstance(source, str) else source)]
    with pytest.raises(DataError, match=f"task 't': .*{said}"):
        load_rows(make_task(given[0] if isinstance(source, str) else given))


def test_a_recipe_may_list_files_and_keeps_them(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{name}.jsonl", many(name, 40)) for name in "ab"]
    task = {"name": "t", "source": names, "input_column": "a", "target_column": "b"}
    recipe = tmp_path / "a.yaml"
    recipe.write_text(f"name: a\nbase: {{name: tiny-llama}}\ntasks: [{json.dumps(task)}]\n")
    loaded = load_recipe(str(recipe))
    recipe.write_text(loaded.to_yaml())
    assert load_recipe(str(recipe)) == loaded


# --- configurations


def test_a_configuration_is_chosen_by_its_name(configured: Path) -> None:
    assert load_rows(make_task(str(configured), config="long")) == [("long", "a long poem")]


@pytest.mark.parametrize("config", [None, "lnog"])
def test_the_configurations_of_a_data_set_are_named(config: str | None, configured: Path) -> None:
    with pytest.raises(DataError, match=r"config: NAME.*short, long"):
        load_rows(make_task(str(configured), config=config))


def test_a_configuration_of_files_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", many("a", 2))
    with pytest.raises(DataError, match="config is for data sets"):
        load_rows(make_task(source, config="short"))


# --- splits of the source's own


def files(folder: Path, **splits: Rows) -> dict[str, str]:
    for split, rows in splits.items():
        write(folder / f"{split}.jsonl", rows)
    return {"source": str(folder)}


def single_files(folder: Path, **splits: Rows) -> dict[str, str]:
    paths = {split: write(folder / f"{split}.jsonl", rows) for split, rows in splits.items()}
    named = {f"{split}_split": path for split, path in paths.items() if split != "train"}
    return {"source": paths["train"], **named}


@pytest.mark.parametrize("layout", [files, single_files])
def test_own_splits_stand_in_the_place_of_ours(
    layout: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    parts = {"train": many("a", 30), "validation": many("v", 20), "test": many("t", 10)}
    named = {"validation_split": "validation", "test_split": "test"}
    found = prepared(make_task(**(named | layout(tmp_path, **parts))))
    assert found.counts["kept"] == 60
    assert "overlap" not in found.counts
    for split, rows in parts.items():
        held = {(each.input, each.target) for each in found.samples if each.split == split}
        assert held == set(rows)


@pytest.mark.parametrize("own", ["validation", "test"])
def test_train_is_divided_for_a_split_that_is_missing(own: str, tmp_path: Path) -> None:
    source = files(tmp_path, train=many("a", 100), **{own: many("o", 10)})
    found = prepared(make_task(**source, **{f"{own}_split": own}))
    held = {each.input for each in found.samples if each.split == own}
    assert held == {name for name, _ in many("o", 10)}
    other = "test" if own == "validation" else "validation"
    assert 5 < found.counts[other] < 30
    assert sum(found.counts[split] for split in ("train", "validation", "test")) == 110


def test_what_is_withheld_is_not_trained_on(tmp_path: Path) -> None:
    test, validation = many("t", 10), many("v", 10)
    train = [*many("a", 30), ("T  0", "another"), ("other", "v poem 0"), *test[3:5]]
    source = files(tmp_path, train=train, validation=[*validation, test[9]], test=test)
    task = make_task(**source, validation_split="validation", test_split="test")
    found = prepared(task)
    learned = {each.input for each in found.samples if each.split == "train"}
    assert learned == {name for name, _ in many("a", 30)}
    sizes = {split: found.counts[split] for split in ("train", "validation", "test")}
    assert sizes == {"train": 30, "validation": 10, "test": 10}
    assert found.counts["overlap"] == 5
    assert found.examples["overlap"] == test[9]
    pairs = task.model_copy(update={"cleaning": task.cleaning.model_copy(
        update={"duplicates": "pair"})})  # fmt: skip
    assert prepared(pairs).counts["overlap"] == 4  # the target alone makes none


@pytest.mark.slow
def test_fewer_samples_keep_the_usual_shares(tmp_path: Path) -> None:
    source = files(tmp_path, train=many("a", 300), test=many("t", 300), validation=many("v", 5))
    task = make_task(**source, validation_split="validation", test_split="test")
    counts = prepared(task, samples=100).counts
    assert {split: counts[split] for split in ("train", "validation", "test")} == {
        "train": 80,
        "validation": 5,
        "test": 15,
    }
    many_tests = prepared(task, samples=500).counts
    assert (many_tests["train"], many_tests["test"]) == (300, 195)
    few, more = (prepared(task, samples=size).samples for size in (50, 100))
    assert {each.id for each in few} < {each.id for each in more}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_split": "tset"}, "no files of the split 'tset'; it has: test, train"),
        ({"split": "dev"}, "no files of the split 'dev'; it has"),
    ],
)
def test_splits_that_a_folder_has_not_are_named(
    changes: dict[str, str], said: str, tmp_path: Path
) -> None:
    source = files(tmp_path, train=many("a", 30), test=many("t", 10))
    with pytest.raises(DataError, match=f"task 't': .*{said}"):
        prepared(make_task(**source, **changes))


def test_a_folder_says_the_split_of_every_file_or_of_none(tmp_path: Path) -> None:
    source = files(tmp_path, train=many("a", 30), more=many("b", 30))
    with pytest.raises(DataError, match=r"more\.jsonl says none of train, validation, test"):
        prepared(make_task(**source))


def test_a_split_of_a_file_is_another_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", many("a", 60))
    for changes in ({"split": "test"}, {"test_split": "test"}, {"validation_split": "b.jsonl"}):
        with pytest.raises(
            DataError, match=r"a file has one split, so .* must be a file of its own"
        ):
            prepared(make_task(source, **changes))
    held_out = write(tmp_path / "b.jsonl", many("b", 60))
    task = make_task(source, test_split=held_out)
    before = source_fingerprint(task)
    write(tmp_path / "b.jsonl", many("c", 60))
    assert source_fingerprint(task) != before


def test_what_one_task_is_tested_on_no_other_task_learns(tmp_path: Path) -> None:
    """Own splits follow no rule: what one task withholds, another may have among its train."""
    shared = many("s", 40)
    own = make_task(**files(tmp_path / "own", train=[*many("a", 30), *shared], test=many("t", 9)),
                    test_split="test", name="own")  # fmt: skip
    rows = [(source, f"another {target}") for source, target in [*shared, *many("t", 9)]]
    ours = make_task(write(tmp_path / "b.jsonl", rows), name="ours")
    found = prepare([own, ours], samples=None, seed=0)
    inputs = {
        (name, split): {each.input for each in part.samples if each.split == split}
        for name, part in found.items()
        for split in ("train", "validation", "test")
    }
    for tested, other in (("own", "ours"), ("ours", "own")):
        for split in ("train", "validation"):
            assert not inputs[tested, "test"] & inputs[other, split]
    assert found["own"].counts["overlap"]
    assert found["ours"].counts["overlap"]
    for part in found.values():
        counts = part.counts
        assert counts["read"] == counts["overlap"] + counts["surplus"] + counts["kept"]
