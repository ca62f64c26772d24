"""The chat template of a tokenizer: what it makes of a conversation, and how its answers end."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from loramix.data.conversations import Conversation, Message
from loramix.data.tokens.special_tokens import token_ids
from loramix.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "loramix asks"  # a text that no template writes


@dataclass(frozen=True)
class AnswerTurn:
    """What a template puts around an answer that is plain text.

    before: the ids between the prompt and the answer, an empty part for thinking for example.
    after: the text behind the answer. end: the id of the first token in it, None without any.
    """

    before: list[int]
    after: str
    end: int | None


def one_turn(text: str) -> Conversation:
    """Return the conversation that asks for one answer to a user's text."""
    return Conversation([{"role": "user", "content": text}])


def rendered(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, *, prompt: bool
) -> str:
    """Return a conversation in the template's markup; as a `prompt`, up to where an answer begins.

    A template whose prompts open a part for thinking that it does not write before plain answers is
    asked for prompts without thinking (`enable_thinking`), if that makes both alike.

    Raises BaseModelError without a template, and DataError, in the template's words, if it does not
    take such a conversation.
    """
    thinking = _thinking(tokenizer, _key(tokenizer))
    return _rendered(tokenizer, conversation, prompt=prompt, **thinking)


def with_answer(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, answer: Message
) -> str:
    """Return a conversation and the answer to it in the template's markup."""
    whole = replace(conversation, messages=[*conversation.messages, answer])
    return rendered(tokenizer, whole, prompt=False)


def continued(tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str) -> list[int]:
    """Return the ids of an answer in its place behind a prompt, both in the template's markup."""
    before = token_ids(tokenizer, prompt, add_special_tokens=False)
    whole = token_ids(tokenizer, prompt + answer, add_special_tokens=False)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    # A token would span the boundary, which generation, after the prompt alone, never writes.
    return token_ids(tokenizer, answer, add_special_tokens=False)


def answer_turn(tokenizer: "PreTrainedTokenizerBase") -> AnswerTurn:
    """Return what the tokenizer's chat template puts around an answer."""
    return _answer_turn(tokenizer, _key(tokenizer), len(tokenizer))


def _rendered(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    *,
    prompt: bool,
    **settings: bool,
) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in conversation.messages],
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=prompt,
            **settings,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the tokenizer's chat template says: {error}") from error
    return text


@lru_cache(maxsize=16)
def _thinking(tokenizer: "PreTrainedTokenizerBase", key: str) -> dict[str, bool]:
    """Return the setting with which the template begins prompts as it begins plain answers."""
    asked = one_turn("a")
    whole = replace(asked, messages=[*asked.messages, {"role": "assistant", "content": PROBE}])
    choices: list[dict[str, bool]] = [{}, {"enable_thinking": False}]
    for settings in choices:
        try:
            prompt = _rendered(tokenizer, asked, prompt=True, **settings)
            if _rendered(tokenizer, whole, prompt=False, **settings).startswith(prompt):
                return settings
        except DataError:
            break  # which is told where the template is needed
    return {}


@lru_cache(maxsize=16)  # by all that makes the turn another one
def _answer_turn(tokenizer: "PreTrainedTokenizerBase", key: str, size: int) -> AnswerTurn:
    asked = one_turn("a")
    whole = with_answer(tokenizer, asked, {"role": "assistant", "content": PROBE})
    head, found, after = whole.rpartition(PROBE)
    if not found:
        raise BaseModelError("the tokenizer's chat template leaves out the answer")
    prompt = rendered(tokenizer, asked, prompt=True)
    before = head.removeprefix(prompt) if head.startswith(prompt) else ""
    places = [
        (after.index(token), -len(token), index)
        for token, index in tokenizer.get_added_vocab().items()
        if token.strip() and token in after
    ]
    return AnswerTurn(
        continued(tokenizer, prompt, before), after, min(places)[2] if places else None
    )


def _key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what tells the tokenizer's chat template from others."""
    if not tokenizer.chat_template:
        raise BaseModelError(
            "the tokenizer has no chat template; choose the chat version of this base (its name "
            "often ends with -Instruct or -it), or set base.chat: false"
        )
    return json.dumps(tokenizer.chat_template)
