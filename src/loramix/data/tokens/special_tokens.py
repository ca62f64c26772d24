"""Special tokens that stand in a text: control where a template writes them, and mere characters
where a user does.

A user's `</s>` is hidden before a template sees it, and shown again as the text is encoded, by a
tokenizer that knows the special tokens by other names: ids and rules are the tokenizer's own, and
nothing but the names of the special tokens differs. Texts without any are encoded as ever.
"""

import copy
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from loramix.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = TypeVar("Value")

# Noncharacters around a word that no data can hold, as every process draws another.
_OPEN, _CLOSE = f"\ufdd0{secrets.token_hex(8)}", "\ufdd1"
_BARRED = re.compile(r"<\|.*\|>")
_HIDDEN = re.compile(f"{_OPEN}h([0-9]+){_CLOSE}")


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the ids of the special tokens by their texts, the longest text first.

    Those that a chat template writes count as well, such as an `<|im_end|>` that was added as an
    ordinary token. Markup without bars, as `<think>`, is what answers are written in.
    """
    named, template = tuple(tokenizer.all_special_tokens), str(tokenizer.chat_template)
    return _special_tokens(tokenizer, len(tokenizer), named, template)


def hide(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Return a user's text with its special tokens hidden; a text without any is unchanged."""
    known = special_tokens(tokenizer)
    if tokenizer.split_special_tokens or not any(token in text for token in known):
        return text
    return _pattern(tuple(known)).sub(lambda found: f"{_OPEN}h{known[found[0]]}{_CLOSE}", text)


def hide_all(tokenizer: "PreTrainedTokenizerBase", value: Value) -> Value:
    """Return JSON-like data with the special tokens in all of its texts hidden."""
    if isinstance(value, str):
        return hide(tokenizer, value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        pairs = ((hide(tokenizer, str(key)), held) for key, held in value.items())
        return {key: hide_all(tokenizer, held) for key, held in pairs}  # type: ignore[return-value]
    if isinstance(value, Sequence):
        return [hide_all(tokenizer, held) for held in value]  # type: ignore[return-value]
    return value


def token_ids(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    add_special_tokens: bool = True,
    target: bool = False,
) -> list[int]:
    """Return the ids of a text, in which hidden special tokens are characters.

    target: whether the text is an encoder-decoder's target.
    """
    settings: dict[str, object] = {"add_special_tokens": add_special_tokens, "verbose": False}
    if _HIDDEN.search(text):
        known = special_tokens(tokenizer)
        if tokenizer.is_fast:
            text = _pattern(tuple(known)).sub(lambda found: _name(known[found[0]]), text)
            tokenizer = _renamed(tokenizer, tuple(known.items()))
        else:
            _refuse_both(text, known)
            settings["split_special_tokens"] = True
        texts = {index: token for token, index in known.items()}
        text = _HIDDEN.sub(lambda found: texts[int(found[1])], text)
    return list(tokenizer(**{"text_target" if target else "text": text}, **settings).input_ids)


def _refuse_both(text: str, known: Mapping[str, int]) -> None:
    """Raise DataError if a text has special tokens beside hidden ones."""
    special = next((token for token in known if token in text), None)
    if special is not None:
        raise DataError(
            f"'{special}' is special in this text, where others stand as characters, which needs "
            "a fast tokenizer; take those out of the data, or convert the tokenizer"
        )


@lru_cache(maxsize=16)  # by all that makes the answer another one: tokenizers can grow
def _special_tokens(
    tokenizer: "PreTrainedTokenizerBase", size: int, named: tuple[str, ...], template: str
) -> dict[str, int]:
    found = {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or (_BARRED.fullmatch(token.content) and token.content in template)
    }
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in named}
    found |= {text: int(index) for text, index in ids.items() if index is not None}
    return {text: found[text] for text in sorted(found, key=len, reverse=True) if text}


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))


def _name(index: int) -> str:
    """Return the other name of a special token."""
    return f"{_OPEN}n{index}{_CLOSE}"


@lru_cache(maxsize=2)
def _renamed(
    tokenizer: "PreTrainedTokenizerBase", known: tuple[tuple[str, int], ...]
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer with all special tokens renamed, in its model as well: a Unigram model
    finds the pieces of its control tokens in any text.
    """
    from tokenizers import Tokenizer

    names = {text: _name(index) for text, index in known}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): held for text, held in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(text, text), held] for text, held in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # none may lead to a special token's text
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    other = copy.copy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(state))
    return other
