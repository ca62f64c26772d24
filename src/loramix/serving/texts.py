"""Text from token ids as they come: whole characters only, up to the first stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "�"  # what bytes decode to that are no character, or not yet
_BYTES = 3  # of a character of four that is still to be finished


class TextStream:
    """The text of one answer.

    stops: strings before which the answer ends. before: ids that a chat template puts before every
    answer; they are no part of it.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        stops: Sequence[str] = (),
        before: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._stops, self._before = tokenizer, stops, list(before)
        self._ids: list[int] = []
        self._start = self._read = self._shown = 0
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """Return the text that this token lets be shown."""
        self._ids.append(token)
        if self._before:
            if self._ids == self._before[: len(self._ids)]:
                if len(self._ids) == len(self._before):
                    self._before, self._ids = [], []
                return ""
            self._before = []
        return self._up_to_stop(self._decoded(finished=False), finished=False)

    def finish(self) -> str:
        """Return what was held back, once no further token comes."""
        return self._up_to_stop(self._decoded(finished=True), finished=True)

    def _decoded(self, *, finished: bool) -> str:
        """Return the text that has become certain.

        It is decoded from the last certain place but one on: what a token looks like can depend on
        the one before it.
        """
        text = self._decode(self._start)
        unsure = 0 if finished else min(_BYTES, len(text) - len(text.rstrip(_UNFINISHED)))
        end = max(self._shown, len(text) - unsure)
        new, self._shown = text[self._shown : end], end
        if not unsure:
            self._start, self._read = self._read, len(self._ids)
            self._shown = len(self._decode(self._start))
        return new

    def _decode(self, start: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _up_to_stop(self, new: str, *, finished: bool) -> str:
        """Return what may be shown of the held and the new text; note whether a stop is in it."""
        text, self._held = self._held + new, ""
        places = [text.index(stop) for stop in self._stops if stop in text]
        if places:
            self.stopped = True
            return text[: min(places)]
        if not finished:
            held = max((_overlap(text, stop) for stop in self._stops), default=0)
            if held:
                text, self._held = text[:-held], text[-held:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
