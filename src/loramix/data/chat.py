"""Chats: conversations in a tokenizer's chat template, and the tokens that end a model's turn."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from loramix.data.conversations import Conversation, Message
from loramix.data.special_tokens import hide_all, token_ids
from loramix.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_PROBE = "loramix asks"  # a text that no template writes
_THINKING = ("reasoning_content", "reasoning", "thinking")  # the names that templates have for it
_BEFORE_TURNS = ("system", "developer")  # roles that stay when the earliest turns go


def one_turn(text: str) -> Conversation:
    """Return the conversation that asks for one answer to a user's text."""
    return Conversation([{"role": "user", "content": text}])


def as_data(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation
) -> Conversation:
    """Return a conversation whose texts hold no control tokens, as a template takes it."""
    messages = [answer_as_data(tokenizer, message) for message in conversation.messages]
    return Conversation(messages, hide_all(tokenizer, conversation.tools))


def answer_as_data(tokenizer: "PreTrainedTokenizerBase", message: Message) -> Message:
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
    prompt = _rendered(tokenizer, conversation, add_generation_prompt=True)
    if conversation.tools:
        bare = replace(conversation, tools=())
        if prompt == _rendered(tokenizer, bare, add_generation_prompt=True):
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
    text = _after(prompt, _with_answer(tokenizer, conversation, answer))
    _refuse_losses(tokenizer, conversation, answer, text)
    text, end = _to_the_end(tokenizer, text)
    return _continued(tokenizer, prompt, text, end)


def end_ids(
    tokenizer: "PreTrainedTokenizerBase",
    config: "GenerationConfig | None" = None,
    *,
    chat: bool,
) -> list[int]:
    """Return the ids of all tokens that end an answer: the tokenizer's end token, those of the
    generation config and, with `chat`, the one that the chat template puts after an answer.
    """
    ends = {tokenizer.eos_token_id}
    configured = getattr(config, "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, Sequence) else {configured}
    if chat:
        ends.add(_turn_end(tokenizer, _template(tokenizer))[1])
    return sorted(end for end in ends if end is not None)


def until_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """Return generated ids up to the first end token, and whether there is one."""
    for index, token in enumerate(ids):
        if token in ends:
            return list(ids[:index]), True
    return list(ids), False


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


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what tells the tokenizer's chat template from others."""
    if not tokenizer.chat_template:
        raise BaseModelError(
            "the tokenizer has no chat template; choose the chat version of this base (its name "
            "often ends with -Instruct or -it), or set base.chat: false"
        )
    return json.dumps(tokenizer.chat_template)


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, **settings: bool
) -> str:
    from jinja2 import TemplateError

    _template(tokenizer)
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in conversation.messages],
            tools=list(conversation.tools) or None,
            tokenize=False,
            **settings,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the tokenizer's chat template says: {error}") from error
    return text


def _with_answer(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, answer: Message
) -> str:
    whole = replace(conversation, messages=[*conversation.messages, answer])
    return _rendered(tokenizer, whole, add_generation_prompt=False)


def _after(prompt: str, whole: str) -> str:
    """Return what follows the prompt in the whole conversation."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    same = next(i for i, (a, b) in enumerate(zip(prompt, whole + "\0", strict=False)) if a != b)
    raise DataError(
        f"the tokenizer's chat template ends a prompt with {prompt[same:][:60]!r} and writes "
        f"{whole[same:][:60]!r} in its place before an answer, so there is no saying where "
        "answers begin; give the tokenizer a template that begins both alike, or set base.chat: "
        "false"
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
        if held and _with_answer(tokenizer, conversation, full) == _with_answer(
            tokenizer, conversation, bare
        ):
            raise DataError(
                f"the tokenizer's chat template does not know an answer's {held[0]}, and would "
                "leave it out; take it out of the data, or choose another base"
            )


def _to_the_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[str, int]:
    """Return an answer in the template's markup without the token that ends it, and that token."""
    after, turn_end = _turn_end(tokenizer, _template(tokenizer))
    places = []
    for end in {turn_end, tokenizer.eos_token_id} - {None}:
        token = tokenizer.convert_ids_to_tokens(end)
        if token in text:
            places.append((text.index(token), end))
    if places:
        place, end = min(places)
        return text[:place], end
    for token, end in tokenizer.get_added_vocab().items():  # of a tool call, for example
        if token.strip() and text.rstrip().endswith(token):
            return text.rstrip().removesuffix(token), end
    if tokenizer.eos_token_id is None:
        raise BaseModelError(
            "neither the chat template nor the tokenizer ends an answer with a token, so a model "
            "cannot learn where its answer ends"
        )
    return text.removesuffix(after), tokenizer.eos_token_id


def _continued(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str, end: int
) -> list[int]:
    """Return the ids of an answer behind its prompt, and the token that ends it."""
    before = token_ids(tokenizer, prompt, add_special_tokens=False)
    whole = token_ids(tokenizer, prompt + answer, add_special_tokens=False)
    if whole[: len(before)] == before:
        return [*whole[len(before) :], end]
    # A token would span the boundary, which generation, after the prompt alone, never writes.
    return [*token_ids(tokenizer, answer, add_special_tokens=False), end]


@lru_cache(maxsize=16)
def _turn_end(tokenizer: "PreTrainedTokenizerBase", template: str) -> tuple[str, int | None]:
    """Return what the template puts after an answer, and the id of the first token in it."""
    answer = {"role": "assistant", "content": _PROBE}
    _, found, after = _with_answer(tokenizer, one_turn("a"), answer).rpartition(_PROBE)
    if not found:
        raise BaseModelError("the tokenizer's chat template leaves out the answer")
    places = [
        (after.index(token), -len(token), index)
        for token, index in tokenizer.get_added_vocab().items()
        if token.strip() and token in after
    ]
    return after, min(places)[2] if places else None
