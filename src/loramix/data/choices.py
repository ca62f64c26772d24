"""Multiple choice: a question with its choices as one input, and the text of the right choice as
its target.

Inputs look as UnifiedQA (Khashabi et al., 2020, https://arxiv.org/abs/2005.00700) writes them:

    Where do fish live? \\n (A) in water (B) in trees

with a backslash and an n between question and choices: a line break would be lost when white space
    is normalised.

A source gives the choices as a list of texts, as a mapping of labels to texts, or as `{"label":
[...], "text": [...]}`; a text is read as JSON. Its answers are labels, places in the list (0 is the
first) or the texts themselves, of one kind in a whole column.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import NamedTuple

from loramix.errors import DataError

SEPARATOR = " \\n "


class Question(NamedTuple):
    """One row of a source, counted from 1; `choices` and `answer` as they stand there."""

    row: int
    text: str
    choices: object
    answer: object


class _Choices(NamedTuple):
    labels: tuple[str, ...]  # empty where the source gives a mere list
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return _lettered(self.texts, self.labels or ascii_uppercase, ", ")


def multiple_choice(questions: Sequence[Question], *, task: str) -> list[tuple[str, str]]:
    """Return input and target of every question.

    Raises DataError, which names the task and the row, if choices are of another shape, fewer than
    2 or more than 26, if an answer is none of the choices, or if answers can be read in two ways.
    """
    offered = [_choices(question, task) for question in questions]
    targets = _right_texts(questions, offered, task)
    inputs = [
        question.text + SEPARATOR + _lettered(choices.texts, ascii_uppercase, " ")
        for question, choices in zip(questions, offered, strict=True)
    ]
    return list(zip(inputs, targets, strict=True))


def _lettered(texts: Sequence[str], letters: Sequence[str], between: str) -> str:
    return between.join(f"({letter}) {text}" for letter, text in zip(letters, texts, strict=False))


def _choices(question: Question, task: str) -> _Choices:
    choices = _shaped(question.choices)
    if choices is None:
        raise DataError(
            f"task '{task}': row {question.row}: choices must be a list of texts, a mapping of "
            "labels to texts or "
            f'{{"label": [...], "text": [...]}}, and are {_short(question.choices)}'
        )
    if not 2 <= len(choices.texts) <= len(ascii_uppercase):
        raise DataError(
            f"task '{task}': row {question.row}: a question needs 2 to {len(ascii_uppercase)} "
            "choices, "
            f"and has {len(choices.texts)}: {_short(question.choices)}"
        )
    return choices


def _shaped(found: object) -> _Choices | None:
    """Return the choices of any known layout, or None for anything else."""
    if isinstance(found, str):
        try:
            decoded = json.loads(found)
        except ValueError:
            return None
        return None if isinstance(decoded, str) else _shaped(decoded)
    labels: list[object] = []
    texts: list[object] = []
    match found:
        case list():
            texts = found
        case {"label": list(label), "text": list(text), **others} if not others:
            labels, texts = label, text
        # Arrow gives every row the keys of all rows, and no text where a row lacks the key
        case dict():
            named = {label: text for label, text in found.items() if text is not None}
            labels, texts = list(named), list(named.values())
        case _:
            return None
    names = [label for label in labels if isinstance(label, str)]
    words = [text for text in texts if isinstance(text, str)]
    whole = len(names) == len(labels) and len(words) == len(texts) and len(set(names)) == len(names)
    return _Choices(tuple(names), tuple(words)) if whole and len(names) in (0, len(words)) else None


def _right_texts(
    questions: Sequence[Question], offered: Sequence[_Choices], task: str
) -> list[str]:
    """Return the texts of the right choices: of the one reading of the answers that fits every
    row.
    """
    pairs = [
        (choices, question.answer) for choices, question in zip(offered, questions, strict=True)
    ]
    attempts = {
        kind: [read(choices, answer) for choices, answer in pairs]
        for kind, read in _READINGS.items()
    }
    whole = {kind: [text for text in found if text is not None] for kind, found in attempts.items()}
    fitting = {kind: texts for kind, texts in whole.items() if len(texts) == len(questions)}
    if not fitting:
        raise _no_choice(questions, offered, attempts, task)
    by_place, by_text = fitting.get("place", []), fitting.get("text", [])
    for question, one, other in zip(
        questions, by_place, by_text, strict=False
    ):  # for where both fit
        if one != other:
            raise DataError(
                f"task '{task}': every answer can be a place or a text: in row {question.row}, "
                f"{question.answer!r} "
                f"stands for '{one}' or '{other}'; label the choices, and answer with labels"
            )
    return next(iter(fitting.values()))


def _no_choice(
    questions: Sequence[Question],
    offered: Sequence[_Choices],
    attempts: Mapping[str, Sequence[str | None]],
    task: str,
) -> DataError:
    """Return the error for the row at which the reading that goes furthest ends."""
    reached = {kind: found.index(None) for kind, found in attempts.items()}
    kind = max(reached, key=lambda name: reached[name])
    place = reached[kind]
    missed = (
        f"no {kind} of the choices, as the answers above it are" if place else "none of the choices"
    )
    return DataError(
        f"task '{task}': row {questions[place].row}: the answer {questions[place].answer!r} is "
        f"{missed}: "
        f"{offered[place]}; answers are labels, places from 0 or texts, of one kind in all rows"
    )


def _by_label(choices: _Choices, answer: object) -> str | None:
    return dict(zip(choices.labels, choices.texts, strict=False)).get(str(answer).strip())


def _by_place(choices: _Choices, answer: object) -> str | None:
    """Return the choice at a place, unless labels are numbers too; a column of numbers with gaps is
    read as floats.
    """
    digits = str(answer).strip().removesuffix(".0")
    if not digits.isdecimal() or any(label.isdecimal() for label in choices.labels):
        return None
    return choices.texts[int(digits)] if int(digits) < len(choices.texts) else None


def _by_text(choices: _Choices, answer: object) -> str | None:
    return next(
        (
            text
            for text in choices.texts
            if isinstance(answer, str) and text.strip() == answer.strip()
        ),
        None,
    )


_READINGS: Mapping[str, Callable[[_Choices, object], str | None]] = {
    "label": _by_label,
    "place": _by_place,
    "text": _by_text,
}


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
