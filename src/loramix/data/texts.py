"""Texts as people's files hold them: halves of emojis, and the lines of poems."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import regex

from loramix.data.tasks import Task, Whitespace
from loramix.errors import DataError

LINES_OF_HAIKU = 3
FEWEST_IN_FORM = 0.1  # of a task's references; below, the data are no haikus in lines
_LETTER, _LATIN = regex.compile(r"\p{L}"), regex.compile(r"\p{Latin}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def digest(*parts: str) -> str:
    """Return 16 hex digits that depend on all parts and on where one ends and the next begins."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")  # lone surrogates hash as well
    return hashlib.blake2b(joined, digest_size=8).hexdigest()


def tidy(text: str, whitespace: Whitespace) -> str:
    """Return `text` with whole characters and its white space as a task's cleaning wants it."""
    if whitespace == "keep":
        return whole_characters(text).replace("\r\n", "\n")
    return normalise(lines_as_slashes(text) if whitespace == "lines" else text)


def normalise(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", whole_characters(text)).split())


def whole_characters(text: str) -> str:
    """Return `text` with pairs of surrogates joined and lone ones as U+FFFD.

    JSON escapes give them for cut emojis; no file in UTF-8 and no tokenizer takes them.
    """
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def lines_as_slashes(text: str) -> str:
    """Return a poem with ` / ` in place of its line breaks; blank lines are left out."""
    lines = [line.strip().strip("/").strip() for line in text.splitlines()]
    written = [line for line in lines if line]
    return " / ".join(written) if len(written) > 1 else text


def poem_lines(text: str) -> list[str]:
    """Return the lines of `text`, split at slashes and line breaks; blank ends are dropped."""
    lines = re.split(r"\s*[/\n]\s*", text.strip())
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def refuse_other_forms(task: Task, targets: Sequence[str]) -> None:
    """Raise DataError if a task with the metric haiku has references that it cannot measure: hardly
    any of three lines, or most of them in another script than Latin.
    """
    if "haiku" not in task.metrics or not targets:
        return
    foreign = [target for target in targets if _is_foreign(target)]
    if len(foreign) > len(targets) / 2:
        raise DataError(
            f"task '{task.name}': {len(foreign) / len(targets):.0%} of the {len(targets):,} "
            "references are in another script than Latin, and the metric haiku counts English "
            f"syllables; the first is {foreign[0][:80]!r}; leave haiku out of the task's metrics "
            "(rouge and chrf measure every script)"
        )
    in_form = sum(len(poem_lines(target)) == LINES_OF_HAIKU for target in targets)
    if in_form < FEWEST_IN_FORM * len(targets):
        raise DataError(
            f"task '{task.name}': {in_form / len(targets):.0%} of the {len(targets):,} references "
            f"have three lines, and the metric haiku expects three, separated by ' / ' or line "
            f"breaks; the first reference is {targets[0][:80]!r}; give the column "
            f"'{task.target_column}' its lines, or leave haiku out of the task's metrics"
        )


def _is_foreign(text: str) -> bool:
    """Return whether most letters of `text` are not Latin."""
    return len(_LETTER.findall(text)) > 2 * len(_LATIN.findall(text))
