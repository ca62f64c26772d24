"""Cleaning: the pairs that a task's rules keep, with counts and examples of what they drop or
change.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from loramix.data import messages
from loramix.data.tasks import Cleaning, Pair, Split, Task
from loramix.data.texts import digest, normalise, tidy, whole_characters

DROPPED = ("blank", "out_of_range", "duplicate")
# Counted where there are any: pairs that another split holds as well, and changed ones.
OVERLAP = "overlap"
CHANGED = ("half_characters", "line_ends", "white_space")


@dataclass
class Cleaned:
    """Pairs that are kept, counts of the others by reason, and the first of every reason.

    counts: read = blank + out_of_range + duplicate + overlap + the kept pairs; those of `CHANGED`
        are among the kept or the duplicates.
    """

    pairs: list[Pair] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("read", *DROPPED), 0))
    examples: dict[str, Pair] = field(default_factory=dict)

    def note(self, reason: str, pair: Pair) -> None:
        """Count a pair that is dropped or changed."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, pair)


def clean(task: Task, pairs: Iterable[Pair]) -> Cleaned:
    """Return the pairs that the task's rules keep, and counts of those they drop.

    Pairs are dropped as blank (no input or no target), then as out of range, then as duplicates;
    word limits and duplicates take any run of white space for one space, and no case.

    By default a repeated target makes a duplicate and a repeated input does not. In the haiku data
    23,707 different poems share 18,652 keywords: to drop repeated inputs would lose a fifth of the
    poems, while one poem under two keywords could be trained on and asked for again in the test.
    Samples with the same input always share a split (`loramix.data.samples.split_of`).
    """
    found = Cleaned()
    kept: dict[object, Pair] = {}
    for raw in pairs:
        found.counts["read"] += 1
        pair = _tidied(task, raw) if all(raw) else raw
        words = _words(task, pair) if all(pair) else pair
        if not all(words):
            found.note("blank", raw)
        elif not _in_range(task.cleaning, words):
            found.note("out_of_range", raw)
        else:
            for reason in _changes(task, raw, pair):
                found.note(reason, raw)
            same = _compared(task, pair)
            key = same[1] if task.cleaning.duplicates == "target" else same
            if key in kept:
                found.note("duplicate", raw)
                # The one with the smallest digest stays, so that the order of rows does not matter.
                pair = min(kept[key], pair, key=pair_id)
            kept[key] = pair
    found.pairs = list(kept.values())
    return found


def without_overlaps(task: Task, parts: Mapping[Split, Cleaned]) -> Cleaned:
    """Return all parts of a source as one, without the pairs that an earlier part holds as well.

    parts: the most withheld first. Two pairs are one if their inputs are, or the openings of their
    conversations, or their targets where these alone make a duplicate.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    whole, seen = Cleaned(), set[tuple[str, str]]()
    for part in parts.values():
        for reason, count in part.counts.items():
            whole.counts[reason] = whole.counts.get(reason, 0) + count
        whole.examples = {**part.examples, **whole.examples}
        keys = {pair: _keys(task, pair) for pair in part.pairs}
        new = [pair for pair in part.pairs if not keys[pair] & seen]
        for pair in part.pairs:
            if keys[pair] & seen:
                whole.note(OVERLAP, pair)
        part.pairs = new
        whole.pairs += new
        seen |= set().union(*(keys[pair] for pair in new))
    return whole


def split_key(task: Task, pair: Pair) -> str:
    """Return what decides on the split of a pair: its input, or the opening of its conversation."""
    return messages.opening(pair[0]) if task.conversational else pair[0]


def pair_id(pair: Pair) -> str:
    """Return the digest by which a pair is known."""
    return digest("id", *pair)


def _tidied(task: Task, pair: Pair) -> Pair:
    change = partial(tidy, whitespace=task.cleaning.whitespace)
    if not task.conversational:
        return change(pair[0]), change(pair[1])
    source, target = messages.changed(pair, change)
    return whole_characters(source), whole_characters(target)  # of keys that are no content


def _words(task: Task, pair: Pair) -> Pair:
    """Return the words of a pair, which are counted."""
    source = messages.words_of(pair[0]) if task.conversational else pair[0]
    return normalise(source), normalise(pair[1])


def _compared(task: Task, pair: Pair) -> Pair:
    """Return what two pairs have in common that are one: all but their case and white space."""
    if task.conversational:
        source, target = messages.changed(pair, normalise)
    else:
        source, target = normalise(pair[0]), normalise(pair[1])
    return source.casefold(), target.casefold()


def _changes(task: Task, raw: Pair, pair: Pair) -> Sequence[str]:
    whole = whole_characters(raw[0]), whole_characters(raw[1])
    found = ["half_characters"] if whole != raw else []
    if pair != whole:
        found.append("line_ends" if task.cleaning.whitespace == "keep" else "white_space")
    return found


def _keys(task: Task, pair: Pair) -> set[tuple[str, str]]:
    keys = {("input", normalise(split_key(task, pair)).casefold())}
    if task.cleaning.duplicates == "target":
        keys.add(("target", _compared(task, pair)[1]))
    return keys


def _in_range(cleaning: Cleaning, pair: Pair) -> bool:
    return _within(pair[0], cleaning.min_input_words, cleaning.max_input_words) and _within(
        pair[1], cleaning.min_target_words, cleaning.max_target_words
    )


def _within(text: str, low: int, high: int | None) -> bool:
    return low <= len(text.split()) <= (high or math.inf)
