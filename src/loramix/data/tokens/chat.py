"""Chats: conversations and answers in a tokenizer's chat template, exactly or not at all."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loramix.data.conversations import Conversation, Message
from loramix.data.tokens.special_tokens import hide_all
from loramix.data.tokens.template import answer_turn, continued, one_turn, rendered, with_answer
from loramix.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINKING = ("reasoning_content", "reasoning", "thinking")  # the names that templates have for it
_BEFORE_TURNS = ("system", "developer")  # roles that stay when the earliest turns go


def as_data(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> Conversation:
    """Return a conversation whose texts hold no control tokens, as a template takes it."""
    messages = [message_as_data(tokenizer, message) for message in conversation.messages]
    return Conversation(messages, hide_all(tokenizer, conversation.tools))


def message_as_data(tokenizer: "PreTrainedTokenizerBase", message: Message) -> Message:
    """Return a message whose texts hold no control tokens, as a template takes it.

    The arguments of tool calls, in some data a text that holds JSON, become an object, as templates
    write them as JSON.
    """
    calls = message.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        message = {**message, "tool_calls": [_with_arguments(call) for call in calls]}
    return hide_all(tokenizer, message)


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> str:
    """Return a conversation up to where the answer begins, in the template's markup.

    Raises DataError, in the template's words, if it does not take such a conversation, and if it
    does not know the conversation's tools.
    """
    prompt = rendered(tokenizer, conversation, prompt=True)
    if conversation.tools:
        bare = replace(conversation, tools=())
        if prompt == rendered(tokenizer, bare, prompt=True):
            raise DataError("the tokenizer's chat template does not know tools; leave them out")
    return prompt


def chat_answer(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, answer: Message
) -> list[int]:
    """Return the ids of what the template puts after the prompt for this answer, up to the end of
    the turn: the first end token, else the last token that the template adds, else the
    tokenizer's end token.

    Raises DataError if the template writes the answer elsewhere, or not all of it.
    """
    prompt = chat_prompt(tokenizer, conversation)
    text = _after(prompt, with_answer(tokenizer, conversation, answer))
    _refuse_losses(tokenizer, conversation, answer, text)
    text, end = _to_the_end(tokenizer, text)
    return [*continued(tokenizer, prompt, text), end]


def shortened(conversation: Conversation) -> Iterator[Conversation]:
    """Yield a conversation, then without ever more of its earliest turns, to the last user's.

    System turns at the beginning stay. A turn is a user's message and all up to the next one.
    """
    messages = list(conversation.messages)
    first = 0
    while first < len(messages) and messages[first]["role"] in _BEFORE_TURNS:
        first += 1
    users = [i for i in range(first, len(messages)) if messages[i]["role"] == "user"]
    yield conversation
    for start in users:
        if start > first:
            yield replace(conversation, messages=[*messages[:first], *messages[start:]])


def chat_problem(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return why prompts cannot go through the tokenizer's chat template, in words, if so."""
    try:
        chat_answer(tokenizer, one_turn("a"), {"role": "assistant", "content": "b"})
    except (BaseModelError, DataError) as error:
        return str(error)
    return None


def _with_arguments(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _with_arguments(function)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        held = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "arguments": held} if isinstance(held, dict) else call


def _after(prompt: str, whole: str) -> str:
    """Return what follows the prompt in the whole conversation."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = next(i for i, (a, b) in enumerate(zip(prompt, whole + "\0", strict=False)) if a != b)
    raise DataError(
        f"the tokenizer's chat template ends a prompt with {prompt[same:][:60]!r} and writes "
        f"{whole[same:][:60]!r} in its place before an answer, so there is no saying where "
        "answers begin; give the tokenizer a template that begins both alike, or set "
        "base.chat: false"
    )


def _refuse_losses(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, answer: Message, text: str
) -> None:
    """Raise DataError if the template leaves out a part of the answer."""
    content = answer.get("content")
    if isinstance(content, str) and "".join(content.split()) not in "".join(text.split()):
        raise DataError(
            f"the tokenizer's chat template writes {text[:60]!r} for an answer, and so changes or "
            f"leaves out a part of {content[:60]!r}"
        )
    for names in (_THINKING, ("tool_calls",)):
        held = [name for name in names if answer.get(name)]
        full = {"content": "", **answer}
        bare = {key: value for key, value in full.items() if key not in held}
        if held and with_answer(tokenizer, conversation, full) == with_answer(
            tokenizer, conversation, bare
        ):
            raise DataError(
                f"the tokenizer's chat template does not know an answer's {held[0]}, and would "
                "leave it out; name it as the template does, take it out of the data, or choose "
                "another base"
            )


def _to_the_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[str, int]:
    """Return an answer in the template's markup without the token that ends it, and that token."""
    turn, end = answer_turn(tokenizer), tokenizer.eos_token_id
    tokens = {index: tokenizer.convert_ids_to_tokens(index) for index in {turn.end, end} - {None}}
    places = [(text.index(token), index) for index, token in tokens.items() if token in text]
    if places:
        place, first = min(places)
        return text[:place], first
    for token, index in tokenizer.get_added_vocab().items():  # what ends a tool call, for example
        if token.strip() and text.rstrip().endswith(token):
            return text.rstrip().removesuffix(token), index
    if end is None:
        raise BaseModelError(
            "neither the chat template nor the tokenizer ends an answer with a token, so a model "
            "cannot learn where its answer ends"
        )
    return text.removesuffix(turn.after), end
