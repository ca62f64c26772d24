"""Generated answers: where they end, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loramix.data.tasks import Whitespace
from loramix.data.tokens.template import answer_turn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """A generated text; finished: whether it ended before the length limit."""

    text: str
    finished: bool


def end_ids(
    tokenizer: "PreTrainedTokenizerBase", config: "GenerationConfig | None", *, chat: bool
) -> list[int]:
    """Return the ids of all tokens that end an answer: the tokenizer's end token, those of the
    generation config and, with `chat`, the one that the chat template puts after an answer.
    """
    configured = None if config is None else config.eos_token_id
    several = configured if isinstance(configured, list | tuple) else [configured]
    ends = {tokenizer.eos_token_id, *several}
    if chat:
        ends.add(answer_turn(tokenizer).end)
    return sorted(int(end) for end in ends if end is not None)


def read_answer(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    ends: Sequence[int],
    *,
    chat: bool,
    whitespace: Whitespace = "keep",
) -> Answer:
    """Return the answer that these generated ids hold, up to the first of `ends`.

    What a chat template puts before every answer is left out, as are special tokens. With `keep`,
    the text has its lines and indentation, without blank lines at the start and white space at the
    end; otherwise its white space is single spaces.
    """
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    written, before = list(ids[:length]), answer_turn(tokenizer).before if chat else []
    if before and written[: len(before)] == before:
        written = written[len(before) :]
    finished = length < len(ids)
    if whitespace != "keep":
        text = tokenizer.decode(written, skip_special_tokens=True)
        return Answer(" ".join(text.split()), finished)
    text = tokenizer.decode(
        written, skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).rstrip()
    first = len(text) - len(text.lstrip())  # the place of the first character that shows
    return Answer(text[text.rfind("\n", 0, first) + 1 :], finished)
