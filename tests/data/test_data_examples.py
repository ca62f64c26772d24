"""The example files of docs/data.md: each is read in the format that the table says."""

import re
from pathlib import Path

import pytest

from loramix.data.conversations import Conversation, answer_message
from loramix.data.sources import load_rows, resolved
from loramix.data.tasks import Task

ROOT = Path(__file__).parents[2]
POEM = "white on the dark roof\nthe first crow of the morning\nleaves no other mark"
# file -> the settings that it needs, its format, and its first input and target
EXAMPLES: dict[str, tuple[dict[str, object], str, tuple[str, str]]] = {
    "columns.csv": (
        {"input_column": "keywords", "target_column": "poem"},
        "columns",
        ("snow", POEM),
    ),
    "choices.jsonl": (
        {"input_column": "question", "target_column": "answer", "choices_column": "choices"},
        "columns",
        ("Where do fish live? \\n (A) in water (B) in trees", "in water"),
    ),
    "prompt-completion.jsonl": (
        {},
        "prompt-completion",
        ("List the files of this folder, newest first.", "ls -t"),
    ),
    "messages.jsonl": ({}, "messages", ("Why does ice float?", "It is less dense than water.")),
    "sharegpt.jsonl": ({}, "messages", ("Name a prime above 10.", "11")),
    "instruction.jsonl": (
        {},
        "instruction",
        (
            "Complete the function.\n\ndef mean(values):",
            "def mean(values):\n    if not values:\n"
            '        raise ValueError("no values")\n    return sum(values) / len(values)\n',
        ),
    ),
    "text.jsonl": (
        {},
        "text",
        (
            "The river rose for three days. On the fourth, the ferryman tied his",
            " boat to the church door and waited for guests,\n\nwho came by roof.",
        ),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_the_table_says(name: str) -> None:
    settings, format, (text, target) = EXAMPLES[name]
    source = ROOT / "examples" / "data" / name
    task = resolved(Task.model_validate({"name": "t", "source": str(source), **settings}))
    rows = load_rows(task)
    assert task.format == format
    first = Conversation.from_text(rows[0][0]).messages[-1]["content"] if (
        task.conversational
    ) else rows[0][0]  # fmt: skip
    assert (first, rows[0][1]) == (text, target)


def test_the_answers_of_the_example_with_a_tool_are_calls_and_texts() -> None:
    source = ROOT / "examples" / "data" / "messages.jsonl"
    rows = load_rows(Task(name="t", source=str(source)))
    tools = [bool(Conversation.from_text(text).tools) for text, _ in rows]
    assert tools == [False, False, True, True]
    assert "tool_calls" in answer_message(rows[2][1])
    assert answer_message(rows[3][1])["content"] == "Four degrees below zero."


def test_the_table_has_a_row_for_every_example_and_every_format() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = [line.split("|") for line in text.splitlines() if "(../examples/data/" in line]
    shown = {
        name: cells[1].split("`")[1]
        for cells in table
        for name in re.findall(r"\(\.\./examples/data/([\w.-]+)\)", cells[-2])
    }
    assert shown == {name: format for name, (_, format, _) in EXAMPLES.items()}
    assert {path.name for path in (ROOT / "examples" / "data").iterdir()} == set(EXAMPLES)
