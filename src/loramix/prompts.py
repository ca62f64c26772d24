"""How the prompts of a mixture look: what its gates were trained to read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from loramix.errors import MixtureError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loramix.mixture.model import MixtureModel

PLACEHOLDER = "{input}"


def fill(template: str, text: str) -> str:
    """Return the prompt for one input; braces in `text` and other braces in the template mean
    nothing.
    """
    before, after = template.split(PLACEHOLDER)
    return before + text + after


class Prompting(BaseModel):
    """Whether prompts go through the tokenizer's chat template, and the prompt template of every
    task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat: bool = False
    templates: Mapping[str, str] = {}

    def render(self, text: str, task: str | None) -> str:
        """Return the prompt of `task` for an input; without a task, `text` is the prompt."""
        if task is None:
            return text
        if task not in self.templates:
            raise MixtureError(
                f"this mixture has no prompt for a task "
                f"'{task}'{did_you_mean(task, self.templates)}; "
                f"it has: {', '.join(self.templates) or 'none'}"
            )
        return fill(self.templates[task], text)


def mixture_tokenizer(mixture: "MixtureModel") -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the mixture's base."""
    from loramix.bases.loading import load_tokenizer

    return load_tokenizer(mixture.base_name, revision=mixture.revision)


def text_inputs(
    mixture: "MixtureModel",
    text: str,
    *,
    task: str | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> "dict[str, Tensor]":
    """Return the model's inputs for one prompt: `input_ids` and `attention_mask` (1, T)."""
    import torch

    from loramix.data.batches import prompt_ids

    tokenizer = tokenizer or mixture_tokenizer(mixture)
    prompt, causal = mixture.prompting.render(text, task), not mixture.config.is_encoder_decoder
    ids = prompt_ids(tokenizer, prompt, causal=causal, chat=mixture.prompting.chat)
    input_ids = torch.tensor([ids], device=mixture.device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
