"""Examples of experts: some prompts of each, with answers where there are some."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loramix.config import PLACEHOLDER
from loramix.data.cleaning import DROPPED, clean
from loramix.data.conversations import Conversation, answer_text
from loramix.data.sources import column_names, load_rows, resolved
from loramix.data.tasks import Task
from loramix.data.texts import digest
from loramix.errors import DataError

FEWEST = 2  # one to learn from, one to ask
# The only column of such a file: prompts without answers.
PROMPT_COLUMNS = ("prompt", "input", "question", "instruction", "text")

Given = str | Path | Task | Sequence[str | tuple[str, str] | Mapping[str, object]]


@dataclass(frozen=True)
class Examples:
    """The examples of one expert.

    task: how they are asked: prompt template, limits, format.
    pairs: input and target; the target is None where there are prompts alone.
    dropped: rows of the source that cleaning has dropped, by reason.
    """

    expert: str
    task: Task
    pairs: tuple[tuple[str, str | None], ...]
    dropped: Mapping[str, int]

    @property
    def answered(self) -> bool:
        """Whether there are answers."""
        return self.pairs[0][1] is not None

    def divided(self, share: float) -> tuple["Examples", "Examples"]:
        """Return the examples to learn from and those held out: `share` of them, at least one of
        each, or none at all for a share of 0.

        A pair's content decides which part it belongs to, not its place in the source.
        """
        ordered = sorted(self.pairs, key=lambda pair: digest("held out", pair[0], pair[1] or ""))
        held = min(max(1, round(share * len(ordered))), len(ordered) - 1) if share else 0
        part = len(ordered) - held
        return replace(self, pairs=tuple(ordered[:part])), replace(
            self, pairs=tuple(ordered[part:])
        )


def read_examples(
    expert: str,
    given: Given,
    *,
    prompt: str = PLACEHOLDER,
    columns: Sequence[str] = (),
) -> Examples:
    """Return the examples of an expert.

    given: a source as tasks read them (a file, a folder, a Hub data set; of a .txt every line is a
        prompt), a task, or the examples themselves: texts, pairs of prompt and answer, or mappings
        as the rows of a source.
    prompt: the prompt template around each input. columns: of the source, for input and target;
        one alone holds prompts. Without any, they are recognised.
    Raises DataError if the source cannot be read, or holds fewer than two examples.
    """
    if isinstance(given, str | Path):
        try:
            found = _from_source(expert, str(given), prompt, list(columns))
        except DataError as error:  # it speaks of a task, which nobody has named
            said = str(error).removeprefix(f"task '{_slug(expert)}': ")
            raise DataError(f"examples of '{expert}': {said}") from error
    elif isinstance(given, Task):
        found = _cleaned(expert, resolved(given))
    else:
        found = _from_values(expert, given, prompt)
    if len(found.pairs) < FEWEST:
        dropped = ", ".join(f"{number} {why}" for why, number in found.dropped.items() if number)
        raise DataError(
            f"expert '{expert}': {len(found.pairs)} examples, and {FEWEST} are the fewest: one to "
            f"learn from, one to ask{f' (left out: {dropped})' if dropped else ''}; 16 do well"
        )
    return found


def _from_source(expert: str, source: str, prompt: str, columns: list[str]) -> Examples:
    task = _task(expert, source=source, prompt=prompt)
    if not columns:
        found = column_names(task)
        alone = [column for column in found if column in PROMPT_COLUMNS]
        # A table with nothing but prompts; .txt files have lines of text.
        if len(alone) == 1 and (len(found) == 1 or source.endswith(".txt")):
            columns = alone
    if len(columns) == 1:
        column = columns[0]
        settings = {"input_column": column, "target_column": column, "format": "columns"}
        return _without_answers(_cleaned(expert, task.model_copy(update=settings)))
    if columns:
        named = {"input_column": columns[0], "target_column": columns[1], "format": "columns"}
        return _cleaned(expert, task.model_copy(update=named))
    return _cleaned(expert, resolved(task))


def _cleaned(expert: str, task: Task) -> Examples:
    # Answers from a small set repeat rightfully; prompts say nothing when they do.
    cleaning = task.cleaning.model_copy(update={"duplicates": "pair"})
    task = task.model_copy(update={"cleaning": cleaning})
    found = clean(task, load_rows(task))
    dropped = {why: found.counts[why] for why in DROPPED}
    return Examples(expert, task, tuple(found.pairs), dropped)


def _without_answers(examples: Examples) -> Examples:
    return replace(examples, pairs=tuple((text, None) for text, _ in examples.pairs))


def _from_values(
    expert: str, values: Sequence[str | tuple[str, str] | Mapping[str, object]], prompt: str
) -> Examples:
    pairs = [_pair(expert, value) for value in values]
    kinds = {(chat, target is None) for _, target, chat in pairs}
    if len(kinds) > 1:
        raise DataError(
            f"expert '{expert}': some examples are conversations or have answers, and some not; "
            "give one kind"
        )
    chat = bool(pairs) and pairs[0][2]
    how: dict[str, Any] = {"format": "messages"}
    if not chat:
        how = {"input_column": "prompt", "target_column": "completion", "prompt": prompt}
    task = _task(expert, source=expert, **how)
    unique = dict.fromkeys((text, target) for text, target, _ in pairs if text.strip())
    return Examples(expert, task, tuple(unique), {"blank or duplicate": len(pairs) - len(unique)})


def _pair(
    expert: str, value: str | tuple[str, str] | Mapping[str, object]
) -> tuple[str, str | None, bool]:
    """Return input, target and whether it is a conversation."""
    if isinstance(value, str):
        return value, None, False
    if not isinstance(value, Mapping):
        text, target = value
        return text, target, False
    messages = value.get("messages")
    if isinstance(messages, list) and messages:
        *before, last = messages
        if last.get("role") == "assistant":
            return Conversation(before).to_text(), answer_text(last), True
        return Conversation(messages).to_text(), None, True
    asked, answer = value.get("prompt"), value.get("completion")
    if not isinstance(asked, str) or not isinstance(answer, str | None):
        raise DataError(
            f"expert '{expert}': an example has the keys {', '.join(value)}; give texts, pairs of "
            "prompt and answer, or mappings with prompt and completion, or with messages"
        )
    return asked, answer, False


def _task(expert: str, **settings: Any) -> Task:
    try:
        return Task(name=_slug(expert), **settings)
    except ValidationError as error:
        raise DataError(f"expert '{expert}': {error.errors()[0]['msg']}") from error


def _slug(expert: str) -> str:
    """Return an expert's name as a task may be called."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", expert).strip("-_")[:100] or "expert"
