"""A text as the inputs of a mixture."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loramix.data.batches import prompt_ids

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
