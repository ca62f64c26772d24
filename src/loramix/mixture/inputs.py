"""The inputs of a mixture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loramix.config import Prompting
from loramix.data.conversations import Conversation, Message
from loramix.data.tokens.chat import as_data
from loramix.data.tokens.encoding import prompt_ids
from loramix.data.tokens.special_tokens import hide
from loramix.errors import MixtureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_inputs(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | Conversation,
    *,
    causal: bool,
    chat: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return a model's inputs for one prompt, `input_ids` and `attention_mask` (1, T).

    causal: whether the model is decoder-only. chat: whether the prompt is one user turn in the
        tokenizer's chat template, as a conversation is in any case.
    """
    ids = prompt_ids(tokenizer, prompt, causal=causal, chat=chat)
    input_ids = torch.tensor([ids], device=device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def asked(
    tokenizer: "PreTrainedTokenizerBase",
    prompting: Prompting,
    text: str | Sequence[Message] | Conversation,
    task: str | None,
) -> str | Conversation:
    """Return the prompt for a text, for the input of a task, or for a conversation.

    Special tokens that stand in it are characters; they are special in a prompt template, and in a
    text that is the whole prompt, without a task and without the chat template.
    """
    if not isinstance(text, str):
        if task is not None:
            raise MixtureError(
                f"a conversation is a whole prompt; ask it without the template of task '{task}'"
            )
        turns = text if isinstance(text, Conversation) else Conversation(text)
        return as_data(tokenizer, turns)
    if task is None and not prompting.chat:
        return text
    return prompting.render(hide(tokenizer, text), task)


def with_first_step(inputs: Mapping[str, object], *, start: int) -> dict[str, object]:
    """Return an encoder-decoder's inputs with the decoder's first step, where it has none.

    start: the id of the token with which the decoder starts.
    """
    if {"decoder_input_ids", "labels"} & inputs.keys():
        return dict(inputs)
    prompts = inputs["input_ids"] if "input_ids" in inputs else inputs.get("inputs_embeds")
    if not isinstance(prompts, Tensor):
        raise MixtureError(
            "weights need input_ids or inputs_embeds; encoder_outputs need decoder_input_ids too"
        )
    first = torch.full((len(prompts), 1), start, device=prompts.device)
    return {**inputs, "decoder_input_ids": first}
