"""The inputs of a mixture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loramix.data.encoding import prompt_ids
from loramix.errors import MixtureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_inputs(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    causal: bool,
    chat: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return a model's inputs for one prompt, `input_ids` and `attention_mask` (1, T).

    causal: whether the model is decoder-only. chat: whether the prompt is one user turn in the
        tokenizer's chat template.
    """
    ids = prompt_ids(tokenizer, prompt, causal=causal, chat=chat)
    input_ids = torch.tensor([ids], device=device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


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
