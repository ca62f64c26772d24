"""Conversations: the turns before an answer, as one text that manifests and tables can hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, object]  # role, content, and whatever else a chat template knows


@dataclass(frozen=True)
class Conversation:
    """The turns that precede an answer, and the tools that a model may call in it.

    messages: as the tokenizer's chat template takes them, the latest last; all their keys are
        passed on, such as `tool_calls` and `reasoning_content`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, object]] = ()

    def to_text(self) -> str:
        """Return the conversation as one line of JSON, the same one for the same conversation."""
        held: dict[str, object] = {"messages": list(self.messages)}
        if self.tools:
            held["tools"] = list(self.tools)
        return json.dumps(held, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> "Conversation":
        """Return the conversation of a text that `to_text` wrote."""
        held = json.loads(text)
        return cls(held["messages"], held.get("tools", ()))


def answer_text(message: Message) -> str:
    """Return an assistant's message as a target: its content, where it holds nothing else; as JSON
    where tool calls or thinking come with it.
    """
    if not message.keys() - {"role", "content"}:
        return str(message.get("content") or "")
    return json.dumps(dict(message), ensure_ascii=False)


def answer_message(target: str) -> Message:
    """Return the assistant's message of a target that `answer_text` wrote."""
    if target.startswith("{"):
        try:
            held = json.loads(target)
        except ValueError:
            held = None
        # An answer may be JSON in its own right; only a message has a role and more than a content.
        if isinstance(held, dict) and held.get("role") == "assistant" and len(held) > 2:
            return held
    return {"role": "assistant", "content": target}
