"""Formats: how the rows of a source hold inputs and targets, recognised by their columns.

columns            two columns that the task names: the input and the target
prompt-completion  `prompt` and `completion`: texts, or lists of messages (then it is `messages`)
messages           `messages`, `conversations`, `conversation` or `chat`: a list of messages, each
                   answer of the assistant a target; `tools` beside them
instruction        `instruction`, `output` or `response`, and perhaps `input` or `context`
text               `text`: its opening is the input, the rest the target
"""

import math
import re
from collections.abc import Mapping, Sequence

from loramix.data.choices import MultipleChoice, multiple_choice
from loramix.data.messages import are_messages, samples_of
from loramix.data.tables import Row
from loramix.data.tasks import Format, Pair, Task
from loramix.errors import DataError, did_you_mean

MESSAGES = ("messages", "conversations", "conversation", "chat")
TOOLS = "tools"
CONTEXTS = ("input", "context")  # of an instruction
OUTPUTS = ("output", "response")
PAIRS = (
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "target"),
    ("input", "output"),
    ("source", "target"),
)
# Beside these a pair is not the whole question, and a text not the whole row.
_MORE_OF_A_QUESTION = {"context", "choices", "options", "system", "system_prompt"}
_MORE_OF_A_TEXT = {"label", "labels", "target", "summary", "completion", "answer", *OUTPUTS}
_PREFERENCE = {"chosen", "rejected"}
OPENING_WORDS = 16


def is_definite(task: Task) -> bool:
    """Return whether the task's format and columns are known without a look at its source."""
    if task.format == "columns":
        return True
    return task.format in ("messages", "text") and task.input_column is not None


def recognised(task: Task, columns: Sequence[str], rows: Sequence[Row]) -> Mapping[str, object]:
    """Return the format and the columns of a task by those of its source and its first rows.

    Raises DataError if they fit none or several.
    """
    named = [column for column in (task.input_column, task.target_column) if column is not None]
    if task.format == "auto":
        found = _candidates(columns, rows)
        if named or len(found) != 1 or set(columns) >= _PREFERENCE:
            raise DataError(_not_one(task, columns, found))
        return _changes(rows, *found[0])
    usual_input, usual_target = _usual(task, columns)
    return _changes(
        rows, task.format, task.input_column or usual_input, task.target_column or usual_target
    )


def columns_of(task: Task, found: Sequence[str]) -> list[str]:
    """Return the columns that a task with a definite format reads.

    found: the columns of its source. Raises DataError if one is missing or there twice.
    """
    needed = [task.input_column, task.target_column, task.choices_column, task.empty_column]
    columns = list(dict.fromkeys(column for column in needed if column is not None))
    _require(task, columns, found)
    more = [TOOLS] if task.conversational else []
    if task.format == "instruction":
        more = [name for name in CONTEXTS if name not in columns]
    return columns + [name for name in more if name in found]


def pairs_of(task: Task, rows: Sequence[Row]) -> list[Pair]:
    """Return the inputs and targets of rows, as they stand there; missing ones are empty texts.

    Rows in which `empty_column` holds something are left out. With `choices_column`, the texts are
    those of `loramix.data.choices`; rows that lack their question or their answer come last, with
    two empty texts. Of a chat, a row has a pair for every answer, and two empty texts for none.
    """
    numbered = list(enumerate(rows, start=1))  # before any is left out, as errors name rows
    if (empty := task.empty_column) is not None:
        numbered = [(number, row) for number, row in numbered if _is_missing(row[empty])]
    if task.choices_column is not None:
        return _choice_pairs(task, task.choices_column, numbered)
    return [pair for number, row in numbered for pair in _pairs(task, number, row)]


# --- recognising


def _candidates(
    columns: Sequence[str], rows: Sequence[Row]
) -> list[tuple[Format, str, str | None]]:
    """Return every format that these columns have, with its input and target columns."""
    names, found = set(columns), list[tuple[Format, str, str | None]]()
    for name in MESSAGES:
        if name in names and (not rows or any(are_messages(row[name]) for row in rows)):
            found.append(("messages", name, None))
    if {"prompt", "completion"} <= names:
        found.append(("prompt-completion", "prompt", "completion"))
    if "instruction" in names:
        found += [("instruction", "instruction", name) for name in OUTPUTS if name in names]
    if not found and not names & _MORE_OF_A_QUESTION:
        found += [("columns", *pair) for pair in PAIRS if set(pair) <= names]
    if not found and "text" in names and not names & _MORE_OF_A_TEXT:
        found.append(("text", "text", None))
    return found


def _usual(task: Task, columns: Sequence[str]) -> tuple[str, str | None]:
    """Return the usual columns of the task's format, those that its source has."""

    def first(names: Sequence[str]) -> str:
        return next((name for name in names if name in columns), names[0])

    match task.format:
        case "messages":
            return first(MESSAGES), None
        case "instruction":
            return "instruction", first(OUTPUTS)
        case "text":
            return "text", None
        case _:
            return "prompt", "completion"


def _changes(
    rows: Sequence[Row], format: Format, input_column: str, target_column: str | None
) -> Mapping[str, object]:
    if format == "prompt-completion" and any(
        are_messages(row.get(input_column)) or are_messages(row.get(str(target_column)))
        for row in rows
    ):
        format = "messages"
    return {"format": format, "input_column": input_column, "target_column": target_column}


def _not_one(
    task: Task, columns: Sequence[str], found: Sequence[tuple[Format, str, str | None]]
) -> str:
    fits = " and ".join(
        f"{format} ({', '.join(name for name in names if name)})" for format, *names in found
    )
    has = ", ".join(columns) or "none at all"
    said = f"its columns ({has}) fit {'several formats: ' + fits if found else 'no known format'}"
    if set(columns) >= _PREFERENCE:
        said = f"its columns ({has}) are those of preferences, of which a task learns one side"
    if task.input_column or task.target_column:
        said = "one of input_column and target_column is named, and the other is not"
    return (
        f"task '{task.name}': {said}; name input_column and target_column, or one of the formats "
        "messages, prompt-completion, instruction and text"
    )


def _require(task: Task, columns: Sequence[str], found: Sequence[str]) -> None:
    twice = [column for column in columns if list(found).count(column) > 1]
    if twice:
        raise DataError(f"it has several columns '{twice[0]}'; rename all but one")
    missing = [column for column in columns if column not in found]
    if missing:
        separator = _other_separator(found)
        near = ["" if separator else did_you_mean(column, found) for column in missing]
        named = " and ".join(f"'{name}'{hint}" for name, hint in zip(missing, near, strict=True))
        raise DataError(
            f"it has no column {named}; it has: {', '.join(found) or 'none at all'}{separator}"
        )


def _other_separator(header: Sequence[str]) -> str:
    """Return a hint if the only column of a header is several, with another separator than commas
    between them.
    """
    names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    between = next((mark for mark in names if len(header) == 1 and mark in header[0]), None)
    if between is None:
        return ""
    instead = "name it .csv" if between == "," else "save it with commas between them"
    return f"; its columns are separated by {names[between]}: {instead}"


# --- the pairs of a row


def _pairs(task: Task, number: int, row: Row) -> list[Pair]:
    source, target = str(task.input_column), task.target_column
    if task.conversational:
        before, answers = (row[source], row[target]) if target else (None, row[source])
        where = f"task '{task.name}': row {number}"
        return samples_of(before, answers, row.get(TOOLS), where=where) or [("", "")]
    text = _text(task, source, row, number)
    if task.format == "text" or target is None:
        return [divided(text)]
    if task.format == "instruction":
        contexts = [_text(task, name, row, number) for name in CONTEXTS if name in row]
        text = "\n\n".join([text, *(context for context in contexts if context.strip())])
    return [(text, _text(task, target, row, number))]


def divided(text: str) -> Pair:
    """Return the opening of a text, of its first words, and the rest with its white space: one
    after the other they are the text.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    words = min(OPENING_WORDS, len(ends) // 2)
    end = ends[words - 1] if words else 0
    return text[:end], text[end:]


def _choice_pairs(task: Task, choices_column: str, rows: Sequence[tuple[int, Row]]) -> list[Pair]:
    """Return the input and target of every row; incomplete rows come last, as empty texts."""
    complete: list[MultipleChoice] = []
    source, target = str(task.input_column), str(task.target_column)
    for number, row in rows:
        answer = row[target]
        if not _is_missing(row[source]) and not _is_missing(answer):
            question = _text(task, source, row, number)
            complete.append(MultipleChoice(number, question, row[choices_column], answer))
    incomplete = len(rows) - len(complete)
    return multiple_choice(complete, task=task.name) + [("", "")] * incomplete


def _text(task: Task, column: str, row: Row, number: int) -> str:
    value = row[column]
    if isinstance(value, str):
        return value
    if _is_missing(value):
        return ""
    if isinstance(value, int | float):
        return str(value)
    chat = "; for messages, say format: messages" if are_messages(value) else ""
    raise DataError(
        f"task '{task.name}': row {number}: column '{column}' must hold texts, "
        f"and holds {type(value).__name__} values{chat}"
    )


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))
