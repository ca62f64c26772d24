"""The form of a haiku: three lines of five, seven and five syllables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loramix.errors import DataError
from loramix.metrics.syllables import line_syllables

FORM = (5, 7, 5)


@dataclass(frozen=True)
class HaikuForm:
    """What the form of one text is, and how much of it is a haiku's."""

    syllables: tuple[int, ...]  # one count per line

    @property
    def three_lines(self) -> bool:
        """Whether there are three lines, of any length."""
        return len(self.syllables) == len(FORM)

    @property
    def lines_right(self) -> int:
        """How many of the first three lines have their five, seven and five syllables."""
        return sum(self.line_right(position) for position in range(len(FORM)))

    @property
    def is_575(self) -> bool:
        """Whether the text is three lines of five, seven and five syllables and nothing else."""
        return self.syllables == FORM

    def line_right(self, position: int) -> bool:
        """Return whether the line at `position` (0, 1 or 2) exists and has its five, seven or five
        syllables.
        """
        return position < len(self.syllables) and self.syllables[position] == FORM[position]


def haiku_lines(text: str) -> list[str]:
    """Return the lines of `text`, which a slash or line breaks separate; blank ones at its edges
    are left out.
    """
    lines = re.split(r"\s*[/\n]\s*", text.strip())
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def haiku_form(text: str) -> HaikuForm:
    """Return the syllables of each line of `text`, which may be empty or no haiku at all."""
    return HaikuForm(tuple(map(line_syllables, haiku_lines(text))))


def syllable_table(texts: Sequence[str]) -> dict[str, int | float]:
    """Return the shares (0 to 1) of all `texts`, empty and malformed ones included, that have a
    haiku's form.

    `line1_5`, `line2_7` and `line3_5` are the shares whose line at that position has that many
    syllables, `poem_575` of complete haikus, `empty` of texts without a line; `mean_syllables` is
    per text, and `n` their number.
    """
    if not texts:
        raise DataError("there are no texts whose syllables could be counted")
    forms = [haiku_form(text) for text in texts]
    return {
        "n": len(forms),
        "three_lines": fmean(form.three_lines for form in forms),
        "line1_5": fmean(form.line_right(0) for form in forms),
        "line2_7": fmean(form.line_right(1) for form in forms),
        "line3_5": fmean(form.line_right(2) for form in forms),
        "poem_575": fmean(form.is_575 for form in forms),
        "mean_syllables": fmean(sum(form.syllables) for form in forms),
        "empty": fmean(not form.syllables for form in forms),
    }
