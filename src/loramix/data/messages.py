"""Messages of chats as sources hold them: one sample for every answer of the assistant.

A message is `{"role": ..., "content": ...}` or, in ShareGPT's words, `{"from": ..., "value": ...}`.
All other keys, such as `tool_calls` and `reasoning_content`, are passed on.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from loramix.data.conversations import Conversation, Message, answer_message, answer_text
from loramix.errors import DataError

ASSISTANT = "assistant"
_NO_QUESTION = ("system", "developer", ASSISTANT)
_SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "assistant"), ASSISTANT),
    **dict.fromkeys(("tool", "observation"), "tool"),
    "system": "system",
}


def are_messages(value: object) -> bool:
    """Return whether a value looks like a list of messages, or like the JSON text of one."""
    found = _decoded(value)
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict)


def samples_of(
    before: object, answers: object, tools: object, *, where: str
) -> list[tuple[str, str]]:
    """Return the inputs and targets of one conversation: one pair for every answer that follows a
    question.

    before: messages, of which none is a target. answers: those after them. where: names the row in
        errors.
    """
    known = _messages(before, where)
    messages = known + _messages(answers, where)
    offered = _tools(tools, where)
    pairs = []
    for place in range(len(known), len(messages)):
        asked = any(message["role"] not in _NO_QUESTION for message in messages[:place])
        if messages[place]["role"] == ASSISTANT and asked:
            conversation = Conversation(messages[:place], offered)
            pairs.append((conversation.to_text(), answer_text(messages[place])))
    return pairs


def opening(text: str) -> str:
    """Return the first question of a conversation with what precedes it, as one text."""
    messages = Conversation.from_text(text).messages
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return _plain(messages[: asked[0] + 1] if asked else messages)


def plain_text(text: str) -> str:
    """Return a conversation for people to read, without tools and other keys."""
    return _plain(Conversation.from_text(text).messages)


def words_of(text: str) -> str:
    """Return all that is said in a conversation."""
    return "\n".join(str(message["content"]) for message in Conversation.from_text(text).messages)


def changed(pair: tuple[str, str], change: Callable[[str], str]) -> tuple[str, str]:
    """Return the input and target of a chat's sample with `change` made to every content."""
    held, answer = Conversation.from_text(pair[0]), answer_message(pair[1])
    messages = [_changed(message, change) for message in held.messages]
    return Conversation(messages, held.tools).to_text(), answer_text(_changed(answer, change))


def _changed(message: Message, change: Callable[[str], str]) -> Message:
    content = message.get("content")
    return {**message, "content": change(content)} if isinstance(content, str) else message


def _plain(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def _decoded(value: object) -> object:
    """Return a value, or what it holds as JSON: CSV files and some data sets keep lists so."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _messages(value: object, where: str) -> list[Message]:
    found = _decoded(value)
    if isinstance(found, str) and not found.strip():
        found = None
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(f"{where}: expected a list of messages, found {_short(value)}")
    return [_message(item, where) for item in found]


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected messages with role and content, found {_short(item)}")
    given = {key: value for key, value in item.items() if value is not None}
    if "from" in given and "role" not in given:
        role = _SHAREGPT.get(str(given.pop("from")))
        content = given.pop("value", None)
    else:
        role, content = given.pop("role", None), given.pop("content", None)
    if not isinstance(role, str):
        raise DataError(
            f"{where}: expected a message from human, gpt, system or tool, or with one role, "
            f"found {_short(item)}"
        )
    return {"role": role, "content": _text(content, where), **given}


def _text(content: object, where: str) -> str:
    """Return the content of a message as text; its parts are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else None
        if isinstance(part, dict) and part.get("type", "text") == "text":
            text = part.get("text")
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(
                f"{where}: a message holds a part of the kind '{kind}', and text is all that is "
                "read; leave such rows out, or give thinking as the message's reasoning_content"
            )
        texts.append(text)
    return "".join(texts)


def _tools(value: object, where: str) -> list[Mapping[str, object]]:
    found = _decoded(value)
    if found is None or (isinstance(found, str) and not found.strip()):
        return []
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"{where}: expected a list of tools, each an object, found {_short(value)}")
    return found


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
