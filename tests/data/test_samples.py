"""Samples: every kind of source, cleaning, splits by content alone, and the manifest."""

import csv
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from loramix.data.cleaning import clean
from loramix.data.places import locate
from loramix.data.samples import (
    Prepared,
    prepare,
    read_manifest,
    split_of,
    write_manifest,
)
from loramix.data.sources import load_rows, pinned, source_fingerprint
from loramix.data.tasks import Cleaning, Task
from loramix.data.texts import normalise
from loramix.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data"
ROWS = [
    ("snow", "white / so, white / white"),
    ("NA", 'a "quoted"\nline'),
    ("", "no input"),
    ("später", "größer, 雪"),
]


def make_task(source: object, **changes: object) -> Task:
    fields = {
        "name": "poem",
        "source": str(source),
        "input_column": "a",
        "target_column": "b",
        "prompt": "on {input}",
    }
    return Task.model_validate(fields | changes)


def write_csv(path: Path, rows, header=("a", "b")) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"a": source, "b": target}) + "\n" for source, target in rows)
    return path


def write_parquet(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sources, targets = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"a": sources, "b": targets}), path)
    return path


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """A folder laid out like a data set repository on the Hub, with two splits."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "poems"
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", [*ROWS, (None, "nothing")])
    write_parquet(folder / "data" / "extra-00000-of-00001.parquet", [("dew", "drops")])
    splits = [f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "extra")]
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(splits) + "---\n"
    )
    return folder


def many(count: int) -> list[tuple[str, str]]:
    return [(f"word {number}", f"poem {number}") for number in range(count)]


def prepare_one(source: Path, *, samples: int | None = None) -> Prepared:
    """Return the samples of a single task."""
    return prepare([make_task(source)], samples=samples, seed=0)["poem"]


def unprepared(prepared) -> list:
    return [sample for part in prepared.values() for sample in part.samples]


# --- sources


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", write_csv),
        ("a.csv.gz", write_csv),
        ("a.jsonl", write_jsonl),
        ("a.jsonl.gz", write_jsonl),
        ("a.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, ROWS)
    assert load_rows(make_task(name)) == ROWS


def test_missing_values_are_empty_and_numbers_are_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": null, "b": "x"}\n\n{"b": "y"}\n{"a": 5, "b": "z", "c": []}\n')
    assert load_rows(make_task(path)) == [("", "x"), ("", "y"), ("5", "z")]


def test_a_folder_like_a_hub_repository_loads_through_datasets(hub_folder):
    assert load_rows(make_task(hub_folder)) == [*ROWS, ("", "nothing")]
    assert load_rows(make_task(hub_folder, split="extra")) == [("dew", "drops")]


def test_an_unknown_split_is_named_with_those_that_exist(hub_folder):
    with pytest.raises(DataError, match=r"split 'tarin'.*\['train', 'extra'\]"):
        load_rows(make_task(hub_folder, split="tarin"))


def test_a_hub_id_is_passed_to_datasets_with_revision_and_split(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows(make_task("someone/poems", revision="v1", split="test")) == [("x", "y")]
    assert asked == [("someone/poems", {"revision": "v1", "split": "test"})]


def test_an_unreachable_hub_is_a_data_error(monkeypatch, tmp_path):
    import datasets

    def load_dataset(name, **options):
        raise ConnectionError("Couldn't reach 'poems.cvs' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "poems.csv", ROWS)
    with pytest.raises(
        DataError, match=r"Couldn't reach.*nor is there a file.*did you mean 'poems\.csv'"
    ):
        load_rows(make_task("poems.cvs"))


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    write_csv(tmp_path / "haiku.csv", ROWS)
    with pytest.raises(DataError, match=r"no such file: .*hiaku\.csv.*did you mean 'haiku\.csv'"):
        load_rows(make_task(tmp_path / "hiaku.csv"))
    with pytest.raises(DataError, match="there is no folder"):
        load_rows(make_task(tmp_path / "nowhere" / "haiku.csv"))


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_a_missing_column_is_answered_with_those_found_and_the_nearest(write, tmp_path):
    path = write(tmp_path / f"x.{write.__name__.removeprefix('write_')}", ROWS)
    with pytest.raises(DataError, match=r"no column 'aa' \(did you mean 'a'\?\); it has: a, b"):
        load_rows(make_task(path, input_column="aa"))


def test_a_missing_column_of_a_folder_is_named(hub_folder):
    with pytest.raises(DataError, match=r"no column 'keywords'; it has: a, b"):
        load_rows(make_task(hub_folder, input_column="keywords"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "x", "b": "y"}\n[1]\n', "line 2 is no JSON object"),
        ("a.jsonl", b'{"a": "x"\n', "cannot read"),
        ("a.jsonl", b"", "it has: none at all"),
        (
            "a.jsonl",
            b'{"a": "x", "b": ["y"]}\n',
            "column 'b' must hold texts, and holds list values",
        ),
        ("a.jsonl.gz", b"not compressed", "cannot read"),
        ("a.csv", b"a,b\nx,y,z\n", "line 2 has more cells than the header"),
        ("a.csv", b"a,b\n\xff,y\n", "cannot read"),
        ("a.parquet", b"PAR1 or not", "cannot read"),
        ("a.docx", b"a b", "no known kind; there are: .parquet"),
        ("a.xlsx", b"PK", "no known kind; save the sheet as CSV, in UTF-8"),
    ],
)
def test_damaged_files_are_data_errors(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(make_task(tmp_path / name))


def test_a_revision_of_something_local_is_refused(tmp_path, hub_folder):
    for source in (write_csv(tmp_path / "a.csv", ROWS), hub_folder):
        with pytest.raises(DataError, match="revision is for Hub data sets"):
            load_rows(make_task(source, revision="main"))


def test_the_fingerprint_of_a_file_or_folder_follows_its_bytes(tmp_path, hub_folder):
    path = write_csv(tmp_path / "a.csv", ROWS)
    for source, file in ((path, path), (hub_folder, hub_folder / "README.md")):
        before = source_fingerprint(make_task(source))
        assert source_fingerprint(make_task(source, split="other", prompt="{input}?")) == before
        file.write_text(file.read_text() + "\n")
        assert source_fingerprint(make_task(source)) != before
    before = source_fingerprint(make_task(hub_folder))
    (hub_folder / ".hidden").write_text("x")
    assert source_fingerprint(make_task(hub_folder)) == before


def test_the_fingerprint_of_a_hub_id_is_the_commit_that_its_revision_names(monkeypatch):
    import huggingface_hub

    def snapshot_download(name, *, repo_type, revision, allow_patterns):
        assert (name, repo_type, allow_patterns) == ("someone/poems", "dataset", [])
        return f"/cache/snapshots/{'a' * 40 if revision is None else 'b' * 40}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert source_fingerprint(make_task("someone/poems")) == f"someone/poems@{'a' * 40}"
    assert pinned(make_task("someone/poems", revision="v1")).revision == "b" * 40
    assert pinned(make_task("someone/poems", revision="c" * 40)).revision == "c" * 40


def test_an_unreachable_hub_leaves_no_fingerprint(monkeypatch):
    import huggingface_hub

    def snapshot_download(name, **options):
        raise FileNotFoundError("Got: ConnectError\nlong explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(DataError, match=r"no data set 'someone/poems'.*HF_HUB_OFFLINE"):
        source_fingerprint(make_task("someone/poems"))


def test_what_is_on_disk_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("someone/poems") is None
    (tmp_path / "someone" / "poems").mkdir(parents=True)
    assert locate("someone/poems") == Path("someone/poems")


# --- cleaning


def test_white_space_and_unicode_are_normalised():
    assert normalise("  Cafe\u0301\u00a0\n\tau  lait\r\n") == "Caf\u00e9 au lait"


def test_every_row_is_kept_or_counted_by_its_reason():
    cleaning = Cleaning(max_input_words=3, min_target_words=2, max_target_words=4)
    rows = [
        ("one", "just enough"),
        ("one ", "four words are fine"),
        ("one", "but five words are not"),
        ("one", "short"),
        ("many many many words", "fine as such"),
        ("two", " \n"),
        ("\t", "fine as such"),
        ("two", "Just  Enough"),
    ]
    cleaned = clean(make_task("x", cleaning=cleaning), rows)
    assert [pair[1].casefold() for pair in cleaned.pairs] == ["just enough", "four words are fine"]
    assert cleaned.counts == {"read": 8, "blank": 2, "out_of_range": 3, "duplicate": 1}
    assert cleaned.examples == {
        "blank": ("two", " \n"),
        "out_of_range": ("one", "but five words are not"),
        "duplicate": ("two", "Just  Enough"),
    }


def test_a_repeated_input_is_no_duplicate():
    cleaned = clean(make_task("x"), [("snow", "one"), ("snow", "two")])
    assert (len(cleaned.pairs), cleaned.counts["duplicate"]) == (2, 0)


def test_answers_out_of_a_small_set_may_repeat_if_the_task_says_so():
    rows = [("is snow white?", "yes"), ("is coal black?", "yes"), ("Is snow white?", "Yes")]
    assert len(clean(make_task("x"), rows).pairs) == 1
    assert len(clean(make_task("x", cleaning=Cleaning(duplicates="pair")), rows).pairs) == 2


def test_which_duplicate_stays_does_not_depend_on_the_order_of_rows():
    rows = [(word, target) for word in "abcdef" for target in ("same", "Same", f"own {word}")]
    reversed_rows = clean(make_task("x"), rows[::-1]).pairs
    assert sorted(clean(make_task("x"), rows).pairs) == sorted(reversed_rows)


# --- splits


def test_the_split_is_the_same_on_every_machine():
    assert [
        split_of(word, seed=0)
        for word in ("snow", "rain", "frog", "moon", "crow", "dew", "tea", "pond")
    ] == ["train", "train", "test", "train", "validation", "train", "train", "train"]


def test_shares_are_70_15_15():
    shares = Counter(split_of(f"word {number}", seed=3) for number in range(20_000))
    assert [shares[split] / 20_000 for split in ("train", "validation", "test")] == pytest.approx(
        [0.70, 0.15, 0.15], abs=0.01
    )


def test_another_seed_splits_otherwise():
    words = [f"word {number}" for number in range(200)]
    assert [split_of(word, seed=0) for word in words] != [split_of(word, seed=1) for word in words]


def test_samples_with_one_input_share_a_split_across_tasks_and_case(tmp_path):
    rows = [(f"{word} {n // 2 % 40}", f"poem {n}") for n, word in enumerate(["Word", "word"] * 100)]
    tasks = [
        make_task(write_csv(tmp_path / "a.csv", rows), name="a"),
        make_task(write_csv(tmp_path / "b.csv", rows[:150]), name="b"),
    ]
    splits: dict[str, set[str]] = {}
    for sample in unprepared(prepare(tasks, samples=None, seed=0)):
        splits.setdefault(sample.input.casefold(), set()).add(sample.split)
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())


def test_order_of_rows_changes_nothing(tmp_path):
    rows = many(300)
    first = prepare([make_task(write_csv(tmp_path / "a.csv", rows))], samples=100, seed=0)
    random.Random(0).shuffle(rows)
    assert prepare([make_task(write_csv(tmp_path / "b.csv", rows))], samples=100, seed=0) == first


def test_more_rows_move_no_sample_to_another_split(tmp_path):
    few = prepare_one(write_csv(tmp_path / "a.csv", many(100)))
    more = prepare_one(write_csv(tmp_path / "b.csv", many(300)))
    assert set(few.samples) < set(more.samples)


def test_fewer_samples_are_among_more(tmp_path):
    task = make_task(write_csv(tmp_path / "a.csv", many(300)))
    few, more = (prepare([task], samples=size, seed=0)["poem"].samples for size in (80, 200))
    assert few == more[:80]


def test_the_order_of_samples_is_shuffled(tmp_path):
    rows = sorted(many(200))
    samples = prepare_one(write_csv(tmp_path / "a.csv", rows)).samples
    assert [(sample.input, sample.target) for sample in samples] != rows
    assert sorted((sample.input, sample.target) for sample in samples) == rows


@given(st.text(), st.integers())
def test_every_input_has_a_split(text: str, seed: int):
    assert split_of(text, seed=seed) in ("train", "validation", "test")


# --- sizes


def sizes(tasks, samples) -> dict[str, int]:
    return {
        name: part.counts["kept"] for name, part in prepare(tasks, samples=samples, seed=0).items()
    }


def test_tasks_are_cut_to_the_smallest_or_to_what_is_asked(tmp_path):
    big = make_task(write_csv(tmp_path / "a.csv", many(150)), name="big")
    small = make_task(write_csv(tmp_path / "b.csv", many(90)), name="small")
    assert sizes([big, small], None) == {"big": 90, "small": 90}
    assert sizes([big, small], 50) == {"big": 50, "small": 50}
    own = small.model_copy(update={"samples": 60})
    assert sizes([big, own], None) == {"big": 150, "small": 60}
    assert sizes([big, own], 100) == {"big": 100, "small": 60}


def test_counts_account_for_every_row(tmp_path):
    rows = [*many(200), *many(10), ("", "blank")]
    counts = prepare_one(write_csv(tmp_path / "a.csv", rows), samples=150).counts
    assert counts.pop("train") + counts.pop("validation") + counts.pop("test") == 150
    assert counts == {
        "read": 211,
        "blank": 1,
        "out_of_range": 0,
        "duplicate": 10,
        "surplus": 50,
        "kept": 150,
    }


def test_too_few_samples_are_an_error_that_says_what_was_found(tmp_path):
    task = make_task(write_csv(tmp_path / "a.csv", [*many(40), ("x", "")]))
    with pytest.raises(
        DataError,
        match=r"'poem': 50 samples are asked for, and cleaning leaves 40 \(read 41, blank 1",
    ):
        prepare([task], samples=50, seed=0)


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cleaning leaves 0"):
        prepare([make_task(write_csv(tmp_path / "a.csv", [("", "x")]))], samples=None, seed=0)


def test_an_empty_split_is_an_error(tmp_path):
    rows = [("one input", f"poem {number}") for number in range(50)]
    with pytest.raises(DataError, match=r"'poem': a split is empty \(.*kept 50.*\); raise samples"):
        prepare([make_task(write_csv(tmp_path / "a.csv", rows))], samples=None, seed=0)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    task = make_task(write_csv(tmp_path / "a.csv", many(50)))
    with pytest.raises(DataError, match=r"names must differ.*poem"):
        prepare([task, task], samples=None, seed=0)


# --- manifest


def test_a_manifest_gives_back_what_was_written(tmp_path):
    tasks = [
        make_task(write_csv(tmp_path / f"{name}.csv", many(60)), name=name) for name in ("b", "a")
    ]
    prepared = prepare(tasks, samples=None, seed=0)
    write_manifest(tmp_path / "data" / "manifest.parquet", prepared)
    assert read_manifest(tmp_path / "data" / "manifest.parquet") == unprepared(prepared)
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["manifest.parquet"]


def test_a_failed_write_leaves_the_older_manifest(tmp_path, monkeypatch):
    path = tmp_path / "manifest.parquet"
    prepared = prepare([make_task(write_csv(tmp_path / "a.csv", many(60)))], samples=None, seed=0)
    write_manifest(path, prepared)
    before = path.read_bytes()

    def write_table(table, where):
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(parquet, "write_table", write_table)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(path, prepared)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"PAR1 half a file"])
def test_a_missing_or_damaged_manifest_is_a_data_error(content, tmp_path):
    path = tmp_path / "manifest.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the manifest .*manifest\.parquet.*prepare"):
        read_manifest(path)


# --- the real files


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not there")
def test_the_real_files_keep_nearly_everything_and_never_straddle():
    from loramix.data.catalogue import built_in

    haiku = built_in("haiku").model_copy(update={"source": str(REAL / "haiku.parquet")})
    title = built_in("arxiv-title").model_copy(
        update={
            "source": str(REAL / "arxiv.parquet"),
            "input_column": "summaries",
            "target_column": "titles",
        }
    )
    prepared = prepare([haiku, title], samples=None, seed=0)
    counts = {name: part.counts for name, part in prepared.items()}
    assert counts["haiku"]["read"] == 23_707
    assert counts["arxiv-title"]["read"] == 3_228
    assert counts["haiku"]["kept"] == counts["arxiv-title"]["kept"] > 3_100
    assert counts["haiku"]["duplicate"] == counts["arxiv-title"]["duplicate"] == 0
    splits: dict[str, set[str]] = {}
    for sample in unprepared(prepared):
        splits.setdefault(sample.input.casefold(), set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
