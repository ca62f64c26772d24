"""Multiple choice: every layout in every kind of source, rows with pictures, unusable choices."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from loramix.data.catalogue import built_in
from loramix.data.cleaning import clean
from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.errors import DataError
from loramix.experiment.graph import run_steps
from loramix.experiment.reading import load_recipe
from loramix.experiment.run import Run

Rows = list[dict[str, object]]
ASKED = [
    ("Where do fish live?", ["in trees", "in water"], 1),
    ("What is snow?", ["frozen rain", "salt", "wool"], 0),
]
EXPECTED = [
    ("Where do fish live? \\n (A) in trees (B) in water", "in water"),
    ("What is snow? \\n (A) frozen rain (B) salt (C) wool", "frozen rain"),
]
LABELS = "PQR"
NO_PICTURE = {"bytes": b"what no decoder opens", "path": None}


def make_task(source: object, **changes: object) -> Task:
    columns = {"input_column": "question", "target_column": "answer", "choices_column": "choices"}
    return Task.model_validate(
        {"name": "quiz", "source": str(source), "prompt": "{input}"} | columns | changes
    )


def row(question: object, choices: object, answer: object, **more: object) -> dict[str, object]:
    return {"question": question, "choices": choices, "answer": answer, **more}


def as_list(texts: list[str], right: int) -> tuple[object, object]:
    return texts, right


def as_mapping(texts: list[str], right: int) -> tuple[object, object]:
    return dict(zip(LABELS, texts, strict=False)), LABELS[right]


def as_labels_and_texts(texts: list[str], right: int) -> tuple[object, object]:
    return {"label": list(LABELS[: len(texts)]), "text": texts}, LABELS[right]


def as_list_with_texts(texts: list[str], right: int) -> tuple[object, object]:
    return texts, texts[right]


def write_csv(folder: Path, rows: Rows) -> Path:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([values | {"choices": json.dumps(values["choices"])} for values in rows])
    return folder / "a.csv"


def write_jsonl(folder: Path, rows: Rows) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(values) + "\n" for values in rows))
    return folder / "a.jsonl"


def write_parquet(folder: Path, rows: Rows) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def write_folder(folder: Path, rows: Rows) -> Path:
    (folder / "quiz").mkdir()
    write_parquet(folder / "quiz", rows).rename(folder / "quiz" / "train.parquet")
    return folder / "quiz"


def write_folder_of_jsonl(folder: Path, rows: Rows) -> Path:
    (folder / "quiz").mkdir()
    write_jsonl(folder / "quiz", rows).rename(folder / "quiz" / "train.jsonl")
    return folder / "quiz"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# --- layouts


@pytest.mark.parametrize("layout", [as_list, as_mapping, as_labels_and_texts, as_list_with_texts])
@pytest.mark.parametrize(
    "write", [write_csv, write_jsonl, write_parquet, write_folder, write_folder_of_jsonl]
)
def test_every_layout_in_every_kind_of_source_gives_the_same_rows(
    layout: Callable[[list[str], int], tuple[object, object]],
    write: Callable[[Path, Rows], Path],
    tmp_path: Path,
) -> None:
    rows = [row(question, *layout(texts, right)) for question, texts, right in ASKED]
    assert load_rows(make_task(write(tmp_path, rows))) == EXPECTED


def test_the_mark_between_question_and_choices_outlives_cleaning(tmp_path: Path) -> None:
    rows = [row(" Is it\n cold? ", ["yes ", "no"], 0)]
    flat = make_task("x", cleaning={"whitespace": "collapse"})
    cleaned = clean(flat, load_rows(make_task(write_jsonl(tmp_path, rows))))
    assert cleaned.pairs == [("Is it cold? \\n (A) yes (B) no", "yes")]


def test_rows_without_a_question_or_an_answer_are_blank(tmp_path: Path) -> None:
    rows = [
        row(None, ["x", "y"], 0),
        row("Which?", ["x", "y"], None),
        row("Which?", ["x", "y"], 1),
        row(" ", [], 0),
    ]
    found = load_rows(make_task(write_jsonl(tmp_path, rows)))
    assert sorted(found) == [("", ""), ("", ""), ("", ""), ("Which? \\n (A) x (B) y", "y")]
    assert clean(make_task("x"), found).counts == {
        "read": 4,
        "blank": 3,
        "out_of_range": 0,
        "duplicate": 0,
    }


# --- answers


@pytest.mark.parametrize("answers", [["1", "3"], [1, 3]], ids=["texts", "numbers"])
def test_labels_that_are_numbers_are_labels_and_no_positions(
    answers: list[object], tmp_path: Path
) -> None:
    numbered = {"1": "x", "2": "y", "3": "z"}
    rows = [row("First?", numbered, answers[0]), row("Last?", numbered, answers[1])]
    assert [target for _, target in load_rows(make_task(write_jsonl(tmp_path, rows)))] == ["x", "z"]


def test_positions_among_labels_that_are_numbers_are_refused(tmp_path: Path) -> None:
    rows = [row("First?", {"1": "x", "2": "y"}, 0), row("Last?", {"1": "x", "2": "y"}, 1)]
    with pytest.raises(
        DataError, match=r"row 1: the answer 0 is none of the choices: \(1\) x, \(2\) y"
    ):
        load_rows(make_task(write_jsonl(tmp_path, rows)))


def test_positions_may_be_given_for_labelled_choices(tmp_path: Path) -> None:
    rows = [row("Which?", {"A": "x", "B": "y"}, 1)]
    assert load_rows(make_task(write_jsonl(tmp_path, rows)))[0][1] == "y"


def test_positions_in_a_column_with_gaps_are_floats_in_parquet(tmp_path: Path) -> None:
    rows = [row("Which?", ["x", "y"], 1.0), row("Which?", ["x", "y"], None)]
    assert load_rows(make_task(write_parquet(tmp_path, rows)))[0][1] == "y"


def test_a_number_is_a_position_where_a_text_looks_like_it(tmp_path: Path) -> None:
    rows = [row("How many?", ["1", "2", "3"], 1)]
    assert load_rows(make_task(write_jsonl(tmp_path, rows)))[0][1] == "2"


def test_the_whole_column_tells_numbers_that_are_texts_from_positions(tmp_path: Path) -> None:
    rows = [row("How many?", ["0", "1"], "1"), row("How many?", ["7", "9"], "9")]
    assert [target for _, target in load_rows(make_task(write_csv(tmp_path, rows)))] == ["1", "9"]


def test_answers_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    rows = [row("How many?", ["0", "1"], "1"), row("How many?", ["1", "0"], "1")]
    with pytest.raises(
        DataError,
        match=r"'quiz': every answer can be a position or a text: in row 2, '1' .* '0' or '1'",
    ):
        load_rows(make_task(write_csv(tmp_path, rows)))


@pytest.mark.parametrize(
    ("layout", "answers", "message"),
    [
        (
            as_mapping,
            ["P", "S"],
            r"row 2: the answer 'S' is no label .*: \(P\) x, \(Q\) y; answers are labels",
        ),
        (
            as_mapping,
            ["P", "y"],
            "row 2: the answer 'y' is no label of the choices, as the answers above it are",
        ),
        (
            as_labels_and_texts,
            ["q"],
            r"row 1: the answer 'q' is none of the choices: \(P\) x, \(Q\) y",
        ),
        (as_list, [0, 1, 2], r"row 3: the answer 2 is no position .*: \(A\) x, \(B\) y"),
        (as_list, [-1], "row 1: the answer -1 is none"),
        (as_list, [0.5], r"row 1: the answer 0\.5 is none"),
        (as_list, [True], "row 1: the answer True is none"),
        (as_list, [["x"]], r"row 1: the answer \['x'\] is none"),
        (as_list, ["x", "z"], r"row 2: the answer 'z' is no text .*: \(A\) x, \(B\) y"),
    ],
)
def test_an_answer_that_is_no_choice_is_named_with_its_row_and_the_choices(
    layout: Callable[[list[str], int], tuple[object, object]],
    answers: list[object],
    message: str,
    tmp_path: Path,
) -> None:
    rows = [row("Which?", layout(["x", "y"], 0)[0], answer) for answer in answers]
    with pytest.raises(DataError, match=f"task 'quiz': {message}"):
        load_rows(make_task(write_jsonl(tmp_path, rows)))


# --- choices


@pytest.mark.parametrize(
    "choices",
    [
        None,
        "x or y",
        '"[]"',
        5,
        [1, 2],
        ["x", None],
        {"A": "x", "B": ["y"]},
        {"label": ["A"], "text": ["x", "y"]},
        {"label": ["A", "A"], "text": ["x", "y"]},
        {"label": [1, 2], "text": ["x", "y"]},
        {"label": ["A", "B"], "text": ["x", "y"], "note": ["n"]},
    ],
    ids=str,
)
def test_choices_of_another_shape_are_refused_with_what_was_found(
    choices: object, tmp_path: Path
) -> None:
    rows = [row("Which?", ["x", "y"], 0), row("Which?", choices, 0)]
    with pytest.raises(
        DataError, match="task 'quiz': row 2: choices must be a list of texts, a mapping"
    ) as error:
        load_rows(make_task(write_jsonl(tmp_path, rows)))
    assert str(error.value).endswith(f"and are {choices!r}")


@pytest.mark.parametrize(
    ("choices", "count"), [([], 0), ({"A": "x", "B": None}, 1), (list("0123456789abc" * 3), 39)]
)
def test_too_few_or_too_many_choices_are_refused(
    choices: object, count: int, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=f"task 'quiz': row 1: a question needs 2 to 26 choices, and has {count}: "
    ):
        load_rows(make_task(write_jsonl(tmp_path, [row("Which?", choices, 0)])))


def test_long_choices_are_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_rows(make_task(write_jsonl(tmp_path, [row("Which?", "x" * 5000, 0)])))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("column", ["choices_column", "empty_column"])
@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet, write_folder])
def test_a_missing_column_is_answered_with_the_nearest(
    column: str, write: Callable[[Path, Rows], Path], tmp_path: Path
) -> None:
    task = make_task(write(tmp_path, [row("Which?", ["x", "y"], 0)]), **{column: "choises"})
    with pytest.raises(DataError, match=r"no column 'choises' \(did you mean 'choices'\?\)"):
        load_rows(task)


# --- rows with pictures


@pytest.mark.parametrize(
    ("write", "values"),
    [
        (write_csv, ["a.png", "", ""]),
        (write_jsonl, ["a.png", None, " "]),
        (write_parquet, [NO_PICTURE, None, None]),
        (write_parquet, ["a.png", None, ""]),
        (write_parquet, [0.0, None, float("nan")]),
        (write_parquet, [b"a picture", None, None]),
        (write_folder, [NO_PICTURE, None, None]),
    ],
)
def test_rows_in_which_the_column_to_be_empty_is_filled_are_left_out(
    write: Callable[[Path, Rows], Path], values: list[object], tmp_path: Path
) -> None:
    rows = [
        row(f"Question {number}?", ["x", "y"], 0, image=value)
        for number, value in enumerate(values)
    ]
    source = write(tmp_path, rows)
    kept = ["Question 1? \\n (A) x (B) y", "Question 2? \\n (A) x (B) y"]
    assert [text for text, _ in load_rows(make_task(source, empty_column="image"))] == kept
    plain = make_task(source, empty_column="image", choices_column=None)
    assert [text for text, _ in load_rows(plain)] == ["Question 1?", "Question 2?"]


def test_rows_are_counted_as_they_stand_in_the_source(tmp_path: Path) -> None:
    rows = [row("A?", ["x", "y"], 0, image="a.png"), row("B?", ["x", "y"], 7, image=None)]
    with pytest.raises(DataError, match="row 2: the answer 7"):
        load_rows(make_task(write_jsonl(tmp_path, rows), empty_column="image"))


# --- built-in tasks


TEXT = datasets.Value("string")
HUB = {
    "commonsense-qa": (
        "tau/commonsense_qa",
        {
            "question": TEXT,
            "choices": {"label": datasets.List(TEXT), "text": datasets.List(TEXT)},
            "answerKey": TEXT,
        },
        [
            {
                "question": "Q?",
                "choices": {"label": ["A", "B"], "text": ["x", "y"]},
                "answerKey": "B",
            },
            {
                "question": "Q?",
                "choices": {"label": ["A", "B"], "text": ["x", "y"]},
                "answerKey": "",
            },
        ],
    ),
    "medqa": (
        "GBaker/MedQA-USMLE-4-options",
        {"question": TEXT, "options": {"A": TEXT, "B": TEXT}, "answer": TEXT, "answer_idx": TEXT},
        [{"question": "Q?", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}],
    ),
    "science-qa": (
        "derek-thomas/ScienceQA",
        {
            "image": datasets.Image(),
            "question": TEXT,
            "choices": datasets.List(TEXT),
            "answer": datasets.Value("int8"),
        },
        [
            {"image": NO_PICTURE, "question": "What is this?", "choices": ["x", "y"], "answer": 0},
            {"image": None, "question": "Q?", "choices": ["x", "y"], "answer": 1},
        ],
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_the_built_in_tasks_read_the_columns_that_their_data_sets_have(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, features, rows = HUB[name]

    def load_dataset(asked: str, **options: object) -> datasets.Dataset:
        assert (asked, options["split"]) == (source, "train")
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cleaned = clean(built_in(name), load_rows(built_in(name)))
    assert cleaned.pairs == [("Q? \\n (A) x (B) y", "y")]


@pytest.mark.parametrize("name", HUB)
def test_answers_that_repeat_are_no_duplicates(name: str) -> None:
    rows = [("one?", "yes"), ("two?", "yes"), ("two?", "yes")]
    assert len(clean(built_in(name), rows).pairs) == 2


@pytest.mark.parametrize("column", ["choices_column", "empty_column"])
def test_other_columns_make_other_data(column: str, tmp_path: Path) -> None:
    def settings(*overrides: str) -> dict[str, object]:
        return run_steps(Run(load_recipe("tiny", overrides), tmp_path), {})[0].settings

    assert settings() == settings()
    assert settings(f"tasks.haiku.{column}=keywords") != settings()
