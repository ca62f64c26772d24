"""Multiple choice: the question with its choices as input, the text of the right one as target.

Inputs look as in UnifiedQA (Khashabi et al., 2020, https://arxiv.org/abs/2005.00700):

    Where do fish live? \\n (A) in water (B) in trees

with a backslash and an n between question and choices: a line break would be lost when white space
is normalised.

A source gives the choices as a list of texts, as a mapping of labels to texts, or as
`{"label": [...], "text": [...]}`; a text is read as JSON. Its answers are labels, positions in the
list (0 is the first) or the texts themselves, of one kind in a whole column.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import NamedTuple

from loramix.errors import DataError

SEPARATOR = " \\n "


class MultipleChoice(NamedTuple):
    """One row of a source, counted from 1, with its choices and answer as the source has them."""

    row: int
    question: str
    choices: object
    answer: object


class _Choices(NamedTuple):
    labels: tuple[str, ...]  # empty where the source gives a mere list
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return _lettered(self.texts, self.labels or ascii_uppercase, ", ")


def multiple_choice(rows: Sequence[MultipleChoice], *, task: str) -> list[tuple[str, str]]:
    """Return the input and target of every row.

    Raises DataError, which names the task and the row, if choices are of another shape, fewer than
    2 or more than 26, if an answer is none of the choices, or if the answers can be read in two
    ways.
    """
    offered = [_choices(row, task) for row in rows]
    targets = _right_texts(rows, offered, task)
    inputs: list[str] = []
    for row, choices in zip(rows, offered, strict=True):
        inputs.append(row.question + SEPARATOR + _lettered(choices.texts, ascii_uppercase, " "))
    return list(zip(inputs, targets, strict=True))


# --- the choices of a row


def _choices(row: MultipleChoice, task: str) -> _Choices:
    choices = _parsed(row.choices)
    if choices is None:
        raise DataError(
            f"task '{task}': row {row.row}: choices must be a list of texts, a mapping of labels "
            f'to texts or {{"label": [...], "text": [...]}}, and are {_short(row.choices)}'
        )
    most = len(ascii_uppercase)
    if not 2 <= len(choices.texts) <= most:
        raise DataError(
            f"task '{task}': row {row.row}: a question needs 2 to {most} choices, "
            f"and has {len(choices.texts)}: {_short(row.choices)}"
        )
    return choices


def _parsed(found: object) -> _Choices | None:
    """Return the choices of any known layout, or None for anything else."""
    if isinstance(found, str):
        try:
            decoded = json.loads(found)
        except ValueError:
            return None
        return None if isinstance(decoded, str) else _parsed(decoded)
    labels: list[object] = []
    texts: list[object] = []
    match found:
        case list():
            texts = found
        case {"label": list(label), "text": list(text), **others} if not others:
            labels, texts = label, text
        case dict():
            # Arrow gives every row the keys of all rows, and None where a row lacks the key.
            given = {label: text for label, text in found.items() if text is not None}
            labels, texts = list(given), list(given.values())
        case _:
            return None
    return _checked(labels, texts)


def _checked(labels: Sequence[object], texts: Sequence[object]) -> _Choices | None:
    """Return the choices if labels and texts are texts, the labels distinct and one per text."""
    strings = [label for label in labels if isinstance(label, str)]
    words = [text for text in texts if isinstance(text, str)]
    if len(strings) != len(labels) or len(words) != len(texts):
        return None
    if len(set(strings)) != len(strings) or len(strings) not in (0, len(words)):
        return None
    return _Choices(tuple(strings), tuple(words))


def _lettered(texts: Sequence[str], letters: Sequence[str], between: str) -> str:
    return between.join(f"({letter}) {text}" for letter, text in zip(letters, texts, strict=False))


# --- the answers of a column


def _right_texts(
    rows: Sequence[MultipleChoice], offered: Sequence[_Choices], task: str
) -> list[str]:
    """Return the texts of the right choices: by the one reading that fits every row."""
    attempts: dict[str, list[str | None]] = {}
    fitting: dict[str, list[str]] = {}
    for kind, read in _READINGS.items():
        found = [read(choices, row.answer) for choices, row in zip(offered, rows, strict=True)]
        attempts[kind] = found
        texts = [text for text in found if text is not None]
        if len(texts) == len(rows):
            fitting[kind] = texts
    if not fitting:
        raise _no_reading(rows, offered, attempts, task)
    if "position" in fitting and "text" in fitting:
        _refuse_two_readings(rows, fitting["position"], fitting["text"], task)
    return next(iter(fitting.values()))


def _no_reading(
    rows: Sequence[MultipleChoice],
    offered: Sequence[_Choices],
    attempts: Mapping[str, Sequence[str | None]],
    task: str,
) -> DataError:
    """Return the error for the first row that the furthest of the readings does not fit."""
    reached = {kind: found.index(None) for kind, found in attempts.items()}
    kind = max(reached, key=lambda name: reached[name])
    index = reached[kind]
    missed = "none of the choices"
    if index:
        missed = f"no {kind} of the choices, as the answers above it are"
    return DataError(
        f"task '{task}': row {rows[index].row}: the answer {rows[index].answer!r} is {missed}: "
        f"{offered[index]}; answers are labels, positions from 0 or texts, of one kind in all rows"
    )


def _refuse_two_readings(
    rows: Sequence[MultipleChoice], by_position: list[str], by_text: list[str], task: str
) -> None:
    """Raise DataError if the two readings give any row different choices."""
    for row, one, other in zip(rows, by_position, by_text, strict=True):
        if one != other:
            raise DataError(
                f"task '{task}': every answer can be a position or a text: in row {row.row}, "
                f"{row.answer!r} stands for '{one}' or '{other}'; label the choices, and answer "
                "with labels"
            )


def _by_label(choices: _Choices, answer: object) -> str | None:
    return dict(zip(choices.labels, choices.texts, strict=False)).get(str(answer).strip())


def _by_position(choices: _Choices, answer: object) -> str | None:
    """Return the choice at a position, unless labels are numbers too."""
    digits = str(answer).strip().removesuffix(".0")  # a column with gaps is read as floats
    if not digits.isdecimal() or any(label.isdecimal() for label in choices.labels):
        return None
    return choices.texts[int(digits)] if int(digits) < len(choices.texts) else None


def _by_text(choices: _Choices, answer: object) -> str | None:
    if not isinstance(answer, str):
        return None
    return next((text for text in choices.texts if text.strip() == answer.strip()), None)


# Of several readings that fit and agree, the first counts.
_READINGS: Mapping[str, Callable[[_Choices, object], str | None]] = {
    "label": _by_label,
    "position": _by_position,
    "text": _by_text,
}


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
