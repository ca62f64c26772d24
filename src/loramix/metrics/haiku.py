"""The form of a haiku: three lines of five, seven and five English syllables.

Words in another script than Latin count no syllables, so that such an answer among English ones is
of another form; tasks whose references are in other scripts are refused when their data is read
(`loramix.data.texts.refuse_other_forms`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loramix.data.texts import poem_lines
from loramix.errors import DataError
from loramix.metrics.syllables import line_syllables

FORM = (5, 7, 5)


@dataclass(frozen=True)
class HaikuForm:
    """The form of one text, compared with a haiku's."""

    syllables: tuple[int, ...]  # one count per line

    @property
    def three_lines(self) -> bool:
        """Whether there are three lines, of any length."""
        return len(self.syllables) == len(FORM)

    @property
    def lines_right(self) -> int:
        """The number of the first three lines that have their five, seven or five syllables."""
        return sum(self.line_right(position) for position in range(len(FORM)))

    @property
    def is_575(self) -> bool:
        """Whether the text is exactly three lines of five, seven and five syllables."""
        return self.syllables == FORM

    def line_right(self, position: int) -> bool:
        """Return whether the line at `position` (0 to 2) exists and has the right syllables."""
        return position < len(self.syllables) and self.syllables[position] == FORM[position]


def haiku_form(text: str) -> HaikuForm:
    """Return the form of any text, be it a haiku, another text or empty."""
    return HaikuForm(tuple(map(line_syllables, poem_lines(text))))


def syllable_table(texts: Sequence[str]) -> dict[str, int | float]:
    """Return the shares (0 to 1) of all `texts`, malformed ones included, that have a haiku's form.

    `line1_5`, `line2_7` and `line3_5` are the shares of texts with that many syllables in that
    line, `poem_575` of complete haikus and `empty` of texts without a line. `mean_syllables` is a
    mean per text, `n` the number of texts.
    """
    if not texts:
        raise DataError("there are no texts to count syllables of")
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
