"""Batches: samples as token ids, laid out so that no logit is computed that no loss uses.

For causal models, prompts are padded on the left and targets on the right, so that the boundary
between them is one column for the whole batch:

    pad pad  p   p   p  | t   t  end pad
    p   p    p   p   p  | t  end pad pad

and the model computes logits from the prompt's last column on (`logits_to_keep`): the first that
predicts a target.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loramix.errors import BaseModelError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that no loss counts
_OPTIONAL = ("position_ids", "logits_to_keep")  # inputs that not every model takes


@dataclass(frozen=True)
class Encoded:
    """One sample as token ids; `target` is empty where there is none.

    The target ends with the end token unless it was cut.
    task: the index of the task in the recipe, for batches that tell which task they are of.
    input_cut, target_cut: whether it was too long and a part of it is left out, as `encode` says.
    """

    prompt: list[int]
    target: list[int]
    task: int | None = None
    input_cut: bool = field(default=False, compare=False)
    target_cut: bool = field(default=False, compare=False)


class Collator:
    """Joins encoded samples into one training batch.

    Encoder-decoder, padded on the right: `input_ids`, `attention_mask` (B, P) and `labels` (B, T).
    Causal, padded outwards: `input_ids`, `attention_mask`, `position_ids` (B, P+T), `labels`
    (B, T+1) for the last T+1 columns alone, the first of them ignored as it is the prompt's last
    token, and `logits_to_keep` = T+1. A batch of one known task has `task`, its index.

    accepted: the names of the model's inputs. One without `logits_to_keep` gets labels (B, P+T) and
    computes every logit; one without `position_ids` finds positions by itself (BLOOM from the
    mask). None: the model takes both.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        causal: bool,
        accepted: Container[str] | None = None,
    ) -> None:
        self.pad = _pad_id(tokenizer)
        self.causal = causal
        self.accepted = accepted if accepted is not None else _OPTIONAL

    def __call__(self, samples: Sequence[Encoded]) -> dict[str, Tensor | int]:
        prompts = [sample.prompt for sample in samples]
        targets = [sample.target for sample in samples]
        if not all(targets):
            raise DataError("a training batch needs a target for every sample")
        batch: dict[str, Tensor | int] = {}
        if self.causal:
            batch |= self._causal(prompts, targets)
        else:
            batch |= _with_mask(prompts, self.pad, side="right")
            batch["labels"] = _padded(targets, IGNORED, side="right")
        tasks = {sample.task for sample in samples}
        if len(tasks) == 1 and (task := tasks.pop()) is not None:
            batch["task"] = task
        return batch

    def _causal(
        self, prompts: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> dict[str, Tensor | int]:
        left = _with_mask(prompts, self.pad, side="left")
        right = _with_mask(targets, self.pad, side="right")
        mask = torch.cat([left["attention_mask"], right["attention_mask"]], dim=1)  # (B, P+T)
        labels_BT = _padded(targets, IGNORED, side="right")
        # The last prompt token predicts the first target token, so its logit is kept as well.
        unlabelled = 1 if "logits_to_keep" in self.accepted else left["input_ids"].shape[1]
        ignored = torch.full((len(prompts), unlabelled), IGNORED)
        batch: dict[str, Tensor | int] = {
            "input_ids": torch.cat([left["input_ids"], right["input_ids"]], dim=1),
            "attention_mask": mask,
            "labels": torch.cat([ignored, labels_BT], dim=1),
        }
        if "position_ids" in self.accepted:
            # Counted from the first real token: left padding would shift learned positions.
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in self.accepted:
            batch["logits_to_keep"] = labels_BT.shape[1] + 1
        return batch


def generation_batch(
    tokenizer: "PreTrainedTokenizerBase", encoded: Sequence[Encoded], causal: bool
) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` (B, P) of the prompts.

    Causal models continue at the right end of a row, so their padding is on the left.
    """
    prompts = [sample.prompt for sample in encoded]
    return _with_mask(prompts, _pad_id(tokenizer), side="left" if causal else "right")


def length_order(lengths: Sequence[int]) -> list[int]:
    """Return the indices from the longest to the shortest, so that neighbours need little padding.

    The first batch is the largest: if memory does not suffice, that shows at once.
    """
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id to pad with; any will do, as padding is masked."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise BaseModelError("the tokenizer has neither a padding nor an end token to pad with")


def _with_mask(rows: Sequence[list[int]], pad: int, *, side: str) -> dict[str, Tensor]:
    ones = [[1] * len(row) for row in rows]
    return {
        "input_ids": _padded(rows, pad, side=side),
        "attention_mask": _padded(ones, 0, side=side),
    }


def _padded(rows: Sequence[list[int]], fill: int, *, side: str) -> Tensor:
    width = max(len(row) for row in rows)
    filled: list[list[int]] = []
    for row in rows:
        gap = [fill] * (width - len(row))
        filled.append(gap + row if side == "left" else row + gap)
    return torch.tensor(filled, dtype=torch.long)  # (B, width)
