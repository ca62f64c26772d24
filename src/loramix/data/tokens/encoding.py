"""Samples as token ids: prompts and targets, plain or in a chat template, cut to their limits."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from loramix.data.conversations import Conversation, answer_message
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded
from loramix.data.tokens.chat import as_data, chat_answer, chat_prompt, message_as_data, shortened
from loramix.data.tokens.special_tokens import hide, token_ids
from loramix.data.tokens.template import one_turn
from loramix.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    sample_input: str,
    target: str | None,
    *,
    causal: bool,
    chat: bool,
) -> Encoded:
    """Return the token ids of the prompt for `sample_input` and of `target`.

    With `chat`, the prompt is a conversation in the tokenizer's chat template, up to where the
    assistant's answer begins, and the target what the template puts there, to the end of the turn:
    the task's own conversation, or one user turn. Otherwise a causal model reads the prompt and a
    line break, an encoder the prompt with the tokenizer's own special tokens, and the target ends
    with the end token. Special tokens that stand in samples are mere characters; those in the
    task's prompt template are special.

    A prompt above `task.max_input_tokens` loses the end of its input, never of its template or of
    the chat markup: the input is cut at the last character with which the whole prompt still fits.
    A conversation first loses its earliest turns, after those of the system, to the last user's,
    which is then cut likewise. A target above `task.max_new_tokens`, end token included, loses its
    end. Raises DataError if the template alone is too long, or does not take the conversation.
    """
    try:
        turns = _conversation(task, sample_input, chat=chat)
        if turns is not None:
            return _of_conversation(tokenizer, task, turns, target)
        return _of_prompt(tokenizer, task, sample_input, target, causal=causal, chat=chat)
    except DataError as error:
        raise DataError(f"task '{task.name}': {error}") from error


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | Conversation,
    *,
    causal: bool,
    chat: bool,
) -> list[int]:
    """Return the token ids of a whole prompt, as `encode` does, whatever its length.

    Special tokens that stand in the prompt are special unless they were hidden.
    """
    if isinstance(prompt, Conversation) or chat:
        turns = prompt if isinstance(prompt, Conversation) else one_turn(prompt)
        # The template writes its own special tokens.
        return token_ids(tokenizer, chat_prompt(tokenizer, turns), add_special_tokens=False)
    if not causal:
        return token_ids(tokenizer, prompt)
    ids = token_ids(tokenizer, prompt + "\n")
    # Some tokenizers end every text, and after an end a model writes nothing.
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _of_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    text: str,
    target: str | None,
    *,
    causal: bool,
    chat: bool,
) -> Encoded:
    ids = partial(_beginning_ids, tokenizer, task, text, causal=causal, chat=chat)
    kept = _fitting(ids, len(text), task.max_input_tokens)
    if target is None:
        target_ids = []
    elif chat:
        message = message_as_data(tokenizer, {"role": "assistant", "content": target})
        asked = one_turn(_beginning(tokenizer, task, text, kept))
        target_ids = chat_answer(tokenizer, asked, message)
    else:
        target_ids = _target_ids(tokenizer, hide(tokenizer, target), causal=causal)
    return _encoded(task, ids(kept), target_ids, input_cut=kept < len(text))


def _beginning(tokenizer: "PreTrainedTokenizerBase", task: Task, text: str, characters: int) -> str:
    """Return the prompt for the first characters of an input."""
    return task.render(hide(tokenizer, text[:characters]))


def _beginning_ids(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    text: str,
    characters: int,
    *,
    causal: bool,
    chat: bool,
) -> list[int]:
    prompt = _beginning(tokenizer, task, text, characters)
    return prompt_ids(tokenizer, prompt, causal=causal, chat=chat)


def _conversation(task: Task, text: str, *, chat: bool) -> Conversation | None:
    """Return the conversation that an input of a task is; None for an ordinary text, as other tasks
    have, which a comparison asks of any.
    """
    if not task.conversational:
        return None
    if not chat:
        raise DataError(
            "conversations go through the tokenizer's chat template; set base.chat: true in a "
            "recipe, or give loramix mix --chat"
        )
    try:
        return Conversation.from_text(text)
    except (ValueError, TypeError, KeyError):
        return None


def _of_conversation(
    tokenizer: "PreTrainedTokenizerBase", task: Task, whole: Conversation, target: str | None
) -> Encoded:
    def ids(turns: Conversation) -> list[int]:
        return prompt_ids(tokenizer, as_data(tokenizer, turns), causal=True, chat=True)

    turns = _fitting_turns(ids, whole, task.max_input_tokens)
    target_ids: list[int] = []
    if target is not None:
        message = message_as_data(tokenizer, answer_message(target))
        target_ids = chat_answer(tokenizer, as_data(tokenizer, turns), message)
    return _encoded(task, ids(turns), target_ids, input_cut=turns != whole)


def _encoded(task: Task, prompt: list[int], target: list[int], *, input_cut: bool) -> Encoded:
    limit = task.max_new_tokens
    return Encoded(prompt, target[:limit], input_cut=input_cut, target_cut=len(target) > limit)


def _fitting(ids: Callable[[int], list[int]], characters: int, limit: int) -> int:
    """Return how many characters of the input the whole prompt may have, to fit the limit."""
    if len(ids(characters)) <= limit:
        return characters
    # How many beginnings fit, the empty one included. Each costs a tokenization, so few are tried.
    fitting = bisect_right(range(characters), limit, key=lambda kept: len(ids(kept)))
    if fitting == 0:
        raise DataError(
            f"the prompt takes {len(ids(0))} tokens without any input; max_input_tokens is {limit}"
        )
    return fitting - 1


def _fitting_turns(
    ids: Callable[[Conversation], list[int]], whole: Conversation, limit: int
) -> Conversation:
    """Return the conversation without as many of its earliest turns as needed to fit the limit,
    the last user's text cut if that is too long by itself.
    """
    for shorter in shortened(whole):
        if len(ids(shorter)) <= limit:
            return shorter
    messages = list(shorter.messages)
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    text = "" if last is None else messages[last]["content"]
    if last is None or not isinstance(text, str):
        raise DataError(
            f"the last turn takes {len(ids(shorter))} tokens and holds no text that could be cut; "
            f"max_input_tokens is {limit}"
        )

    def cut(characters: int) -> Conversation:
        turn = {**messages[last], "content": text[:characters]}
        return replace(shorter, messages=[*messages[:last], turn, *messages[last + 1 :]])

    return cut(_fitting(lambda characters: ids(cut(characters)), len(text), limit))


def _target_ids(tokenizer: "PreTrainedTokenizerBase", target: str, *, causal: bool) -> list[int]:
    """Return the target's ids and the end token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise BaseModelError(
            "the tokenizer has no end token, so a model cannot learn where its answer ends"
        )
    ids = token_ids(tokenizer, target, add_special_tokens=not causal, target=True)
    return ids if ids and ids[-1] == end else [*ids, end]
