"""Formats: recognised by columns, overridable, and what becomes input and target."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from loramix.data.cleaning import clean
from loramix.data.conversations import Conversation, answer_message
from loramix.data.formats import divided
from loramix.data.samples import prepare
from loramix.data.sources import load_rows, resolved
from loramix.data.tasks import Task
from loramix.errors import DataError

ASKED = {"role": "user", "content": "What floats?\n  And why?"}
ANSWERED = {"role": "assistant", "content": "Wood.\n\tIt is light."}
CHAT = [ASKED, ANSWERED]


def write(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def make_task(source: Path, **changes: object) -> Task:
    return Task.model_validate({"name": "t", "source": str(source)} | changes)


def read(folder: Path, *rows: object, **changes: object) -> list[tuple[str, str]]:
    return load_rows(make_task(write(folder, *rows), **changes))


# --- recognising


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, ("prompt-completion", "prompt", "completion")),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ("messages", "prompt", "completion")),
        ({"messages": CHAT, "prompt": "a", "id": 3}, ("messages", "messages", None)),
        ({"conversations": CHAT}, ("messages", "conversations", None)),
        ({"chat": json.dumps(CHAT)}, ("messages", "chat", None)),
        (
            {"instruction": "a", "input": "", "output": "b", "text": "ab"},
            ("instruction", "instruction", "output"),
        ),
        ({"instruction": "a", "response": "b"}, ("instruction", "instruction", "response")),
        ({"text": "a b", "url": "c"}, ("text", "text", None)),
        ({"question": "a", "answer": "b"}, ("columns", "question", "answer")),
        ({"input": "a", "output": "b"}, ("columns", "input", "output")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_format_is_recognised_by_its_columns(
    row: dict[str, object], expected: tuple[str, str, str | None], tmp_path: Path
) -> None:
    task = resolved(make_task(write(tmp_path, row)))
    assert (task.format, task.input_column, task.target_column) == expected
    assert resolved(task) == task
    assert task.cleaning.duplicates == ("pair" if task.conversational else "target")
    assert Task.model_validate(task.model_dump()) == task


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "a", "poem": "b"}, r"columns \(words, poem\) fit no known format; name input_"),
        ({"question": "a", "answer": "b", "choices": []}, "fit no known format"),
        ({"text": "a", "label": 1}, "fit no known format"),
        ({"instruction": "a", "output": "b", "response": "c"}, "several formats: instruction"),
        (
            {"messages": CHAT, "prompt": "a", "completion": "b"},
            r"several formats: messages \(messages\) and prompt-completion \(prompt, completion\)",
        ),
        ({"input": "a", "output": "b", "target": "c"}, "several formats: columns"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences.*name input_column"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_fits_none_or_several_is_refused(
    row: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"task 't': .*{message}"):
        resolved(make_task(write(tmp_path, row)))


def test_a_named_format_or_named_columns_overrule_the_usual_ones(tmp_path: Path) -> None:
    row = {"messages": CHAT, "prompt": "a", "completion": "b", "text": "c d"}
    source = write(tmp_path, row)
    assert load_rows(make_task(source, format="prompt-completion")) == [("a", "b")]
    assert load_rows(make_task(source, format="text")) == [("c", " d")]
    assert load_rows(make_task(source, format="text", input_column="prompt")) == [("", "a")]
    named = make_task(source, input_column="completion", target_column="prompt")
    assert load_rows(named) == [("b", "a")]
    assert len(load_rows(make_task(source, format="messages"))) == 1
    with pytest.raises(DataError, match="one of input_column and target_column is named"):
        load_rows(make_task(source, input_column="prompt"))
    with pytest.raises(DataError, match="no column 'instruction' and 'output'"):
        load_rows(make_task(source, format="instruction"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("prompt", "say {input}"), ("paraphrases", ["so {input}"]), ("inverse", "ask {input}")],
)
def test_conversations_take_no_prompt(setting: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{setting} is for single questions"):
        resolved(make_task(write(tmp_path, {"messages": CHAT}), **{setting: value}))
    with pytest.raises(ValueError, match=f"{setting} is for single questions"):
        make_task(tmp_path, format="messages", **{setting: value})


# --- inputs and targets


def test_an_instruction_stands_before_its_input(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "la"},
        {"instruction": "Rest.", "output": "…"},
    )
    assert rows == [("Add.\n\n1 2", "3"), ("Sing.", "la"), ("Rest.", "…")]
    dolly = {"instruction": "Who?", "context": "Ann sat.", "response": "Ann", "category": "qa"}
    assert read(tmp_path, dolly) == [("Who?\n\nAnn sat.", "Ann")]


@pytest.mark.parametrize(
    "text",
    ["one  two\n\tthree four", " a\r\nb ", "x " * 40, "雪が降る", "", "def f():\n    pass\n"],
)
def test_a_text_is_its_opening_and_the_rest(text: str) -> None:
    opening, rest = divided(text)
    assert opening + rest == text
    assert len(opening.split()) == min(16, len(text.split()) // 2)


def test_every_answer_of_a_conversation_is_a_sample_with_all_before_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    again = {"role": "user", "content": "Sure?"}
    last = {"role": "assistant", "content": "Yes.", "reasoning_content": "Wood is light."}
    messages = [system, ASKED, ANSWERED, again, last]
    pairs = read(tmp_path, {"messages": messages, "tools": [{"type": "function"}]})
    assert [Conversation.from_text(text) for text, _ in pairs] == [
        Conversation([system, ASKED], [{"type": "function"}]),
        Conversation(messages[:4], [{"type": "function"}]),
    ]
    assert pairs[0][1] == ANSWERED["content"]
    assert answer_message(pairs[1][1]) == last


def test_messages_are_read_in_sharegpts_words_and_from_text_and_parts(tmp_path: Path) -> None:
    said = [("system", "Hm."), ("human", "Who?"), ("gpt", "I.")]
    sharegpt = [{"from": role, "value": text} for role, text in said]
    roles = ["system", "user", "assistant"]
    plain = [{"role": role, "content": said[place][1]} for place, role in enumerate(roles)]
    parts = [
        {**message, "content": [{"type": "text", "text": part} for part in message["content"]]}
        for message in plain
    ]
    ((text, target),) = read(tmp_path, {"messages": plain})
    assert (Conversation.from_text(text).messages, target) == (plain[:2], "I.")
    for other in (sharegpt, parts, json.dumps(plain), [{**item, "name": None} for item in plain]):
        assert read(tmp_path, {"conversations": other}) == [(text, target)]


def test_arrow_fills_no_keys_in(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    messages = [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]
    other = [ASKED, ANSWERED]
    parquet.write_table(pyarrow.table({"messages": [messages, other]}), tmp_path / "a.parquet")
    pairs = load_rows(make_task(tmp_path / "a.parquet"))
    assert pairs == read(tmp_path, {"messages": messages}, {"messages": other})
    assert answer_message(pairs[0][1])["tool_calls"] == calls


def test_conversations_without_an_answer_are_blank(tmp_path: Path) -> None:
    rows = [[ASKED], [], None, CHAT[::-1], [ASKED, {"role": "assistant", "content": ""}]]
    source = write(tmp_path, *({"messages": row} for row in [*rows, *many(60)]))
    counts = prepare([make_task(source)], samples=None, seed=0)["t"].counts
    assert (counts["read"], counts["blank"], counts["kept"]) == (65, 5, 60)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "row 1: .* kind 'image_url'"),
        ([{"role": "user", "content": [{"type": "audio", "audio": []}]}], "kind 'audio'"),
        ([{"from": "narrator", "value": "x"}], "expected a message from human, gpt"),
        ([{"content": "x"}], "expected a message from human, gpt"),
        (["hello"], "expected messages with role and content, found 'hello'"),
        ("hello", "expected a list of messages, found 'hello'"),
    ],
)
def test_other_messages_are_refused(messages: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"task 't': row 1: .*{message.removeprefix('row 1: .*')}"):
        read(tmp_path, {"messages": messages}, format="messages")


def many(count: int) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": f"Is {n} even?"}, {"role": "assistant", "content": "Maybe."}]
        for n in range(count)
    ]


def test_samples_of_one_conversation_share_a_split_and_answers_may_repeat(tmp_path: Path) -> None:
    more: Sequence[dict[str, str]] = [{"role": "user", "content": "Sure?"}, dict(ANSWERED)]
    rows = [*many(60), *([*chat, *more] for chat in many(60))]
    source = write(tmp_path, *({"messages": row} for row in rows))
    samples = prepare([make_task(source)], samples=None, seed=0)["t"].samples
    splits: dict[object, set[str]] = {}
    for sample in samples:
        first = Conversation.from_text(sample.input).messages[0]["content"]
        splits.setdefault(first, set()).add(sample.split)
    assert len(samples) == 120  # the 60 that stand there twice count once
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "validation", "test"}


def test_conversations_are_one_if_all_of_them_is(tmp_path: Path) -> None:
    def looked_up(city: str, asked: str = "How warm?") -> list[dict[str, object]]:
        call = {"type": "function", "function": {"name": "f", "arguments": {"city": city}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        told = [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "Four."}]
        return [{"role": "user", "content": asked}, answer, *told]

    rows = [looked_up("Oslo"), looked_up("Bergen"), looked_up("Oslo", "how \n warm?"), *many(60)]
    task = resolved(make_task(write(tmp_path, *({"messages": row} for row in rows))))
    cleaned = clean(task, load_rows(task))
    assert (cleaned.counts["read"], cleaned.counts["duplicate"]) == (66, 2)


def test_the_words_of_conversations_are_those_of_their_contents(tmp_path: Path) -> None:
    cleaning = {"max_input_words": 3}
    task = resolved(make_task(write(tmp_path, {"messages": CHAT}), cleaning=cleaning))
    system = {"role": "developer", "content": "x"}
    short, long = many(1)[0], [system, *many(1)[0]]
    pairs = read(
        tmp_path, {"messages": short}, {"messages": long}, {"messages": [system, ANSWERED]}
    )
    assert len(pairs) == 3
    cleaned = clean(task, pairs)
    assert (len(cleaned.pairs), cleaned.counts["out_of_range"], cleaned.counts["blank"]) == (
        1,
        1,
        1,
    )
