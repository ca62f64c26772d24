"""Examples of experts, from whatever holds them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loramix.assembly.examples import Given, read_examples
from loramix.data.conversations import Conversation
from loramix.data.tasks import Task
from loramix.errors import DataError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def written(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        (["one", "two"], {("one", None), ("two", None)}),
        ([("one", "1"), ("two", "2"), ("one", "1")], {("one", "1"), ("two", "2")}),
        ([{"prompt": "one"}, {"prompt": "two"}], {("one", None), ("two", None)}),
        (
            [{"prompt": "one", "completion": "1"}, {"prompt": "two", "completion": "2"}],
            {("one", "1"), ("two", "2")},
        ),
    ],
)
def test_examples_may_be_values(given: Given, pairs: set[tuple[str, str | None]]) -> None:
    found = read_examples("an expert", given)
    assert set(found.pairs) == pairs
    assert found.answered is (next(iter(pairs))[1] is not None)


def test_conversations_are_the_turns_before_an_answer() -> None:
    found = read_examples("e", [{"messages": TURNS}, {"messages": [*TURNS, *TURNS]}])
    assert found.task.conversational
    assert found.pairs[0] == (Conversation(TURNS[:1]).to_text(), "hello")
    without = read_examples("e", [{"messages": TURNS[:1]}, {"messages": [*TURNS, TURNS[0]]}])
    assert not without.answered


def test_files_are_read_as_tasks_read_them(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(5)]
    file = written(tmp_path / "qa.jsonl", rows)
    assert set(read_examples("e", file).pairs) == {(f"q{n}", f"a{n}") for n in range(5)}
    own = read_examples("e", file, columns=("answer", "question"), prompt="Ask: {input}")
    assert ("a1", "q1") in own.pairs
    assert own.task.render("x") == "Ask: x"
    task = Task(name="t", source=str(file), input_column="question", target_column="answer")
    assert set(read_examples("e", task).pairs) == set(read_examples("e", file).pairs)
    chats = written(
        tmp_path / "chats.jsonl",
        [
            {"messages": TURNS},
            {"messages": TURNS[:1]},
            {
                "messages": [
                    {"role": "user", "content": "bye"},
                    {"role": "assistant", "content": "now"},
                ]
            },
        ],
    )
    assert len(read_examples("e", chats).pairs) == 2


def test_a_column_or_a_text_of_prompts_is_enough(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo\n\ntwo\n", encoding="utf-8")
    assert set(read_examples("e", lines).pairs) == {("one", None), ("two", None)}
    table = written(tmp_path / "table.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    assert set(read_examples("e", table).pairs) == {("one", None), ("two", None)}
    wide = written(tmp_path / "w.jsonl", [{"ask": "one", "more": 1}, {"ask": "two", "more": 2}])
    assert set(read_examples("e", wide, columns=("ask",)).pairs) == {("one", None), ("two", None)}


def test_parts_depend_on_the_content_alone() -> None:
    given = [(f"prompt {number}", f"answer {number}") for number in range(10)]
    learned, held_out = read_examples("e", given).divided(0.3)
    again, other = read_examples("e", given[::-1]).divided(0.3)
    assert (learned.pairs, held_out.pairs) == (again.pairs, other.pairs)
    assert len(held_out.pairs) == 3
    assert not set(learned.pairs) & set(held_out.pairs)
    assert [len(part.pairs) for part in read_examples("e", given[:2]).divided(0.25)] == [1, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "0 examples, and 2 are the fewest"),
        (["one"], "1 examples, and 2 are the fewest"),
        (["one", "one", " "], "1 examples.*2 blank or duplicate"),
        (["one", ("two", "2")], "some not; give one kind"),
        ([{"text": "one"}, {"text": "two"}], "an example has the keys text"),
    ],
)
def test_what_is_too_little_is_said(given: Given, said: str) -> None:
    with pytest.raises(DataError, match=f"expert 'e': .*{said}"):
        read_examples("e", given)


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", [{"ask": "one", "say": "1"}, {"ask": "two", "say": "2"}])
    with pytest.raises(DataError, match="fit no known format"):
        read_examples("e", file)
    with pytest.raises(DataError, match="did you mean 'ask'"):
        read_examples("e", file, columns=("aks", "say"))
