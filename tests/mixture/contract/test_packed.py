"""Packed rows: several samples in one row are what they are in rows of their own."""

from collections.abc import Callable

import pytest
import torch
from cases import Case, Experts
from conftest import close, tokens
from transformers import DataCollatorWithFlattening

from loramix import MixtureModel
from loramix.errors import MixtureError

SAMPLES = [tokens(1, length, seed=seed)[0] for length, seed in ((9, 1), (7, 2), (8, 3))]
PROMPTS = [4, 3, 5]  # tokens of each sample
CONTEXTS = ["prompt", "running", "token"]


def labelled() -> list[dict[str, list[int]]]:
    features = []
    for ids, prompt in zip(SAMPLES, PROMPTS, strict=True):
        labels = [-100] * prompt + ids[prompt:].tolist()
        features.append({"input_ids": ids.tolist(), "labels": labels})
    return features


def by_positions() -> dict[str, object]:
    """Return a row as `DataCollatorWithFlattening` packs it."""
    return {**DataCollatorWithFlattening()(labelled())}


def by_lengths() -> dict[str, object]:
    """Return a row that says where its samples begin, as padding-free training does."""
    return {**DataCollatorWithFlattening(return_flash_attn_kwargs=True)(labelled())}


def by_mask() -> dict[str, object]:
    """Return a row whose mask keeps each token from all other samples."""
    row = {key: value for key, value in by_positions().items() if key != "position_ids"}
    sample = torch.cat([torch.full((len(ids),), i) for i, ids in enumerate(SAMPLES)])
    same = sample[:, None] == sample
    return {**row, "attention_mask": (same & torch.ones_like(same).tril())[None, None]}


def apart(mixture: MixtureModel) -> torch.Tensor:
    """Return the logits of every sample alone, one after the other."""
    logits = []
    for row in labelled():
        given = {key: torch.tensor([value]) for key, value in row.items()}
        logits.append(mixture(**given).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("packed", [by_positions, by_lengths, by_mask])
@pytest.mark.parametrize("context", CONTEXTS)
def test_packed_samples_are_read_apart(
    context: str, packed: Callable[[], dict[str, object]], experts: Experts
) -> None:
    mixture = Case("llama", context).shared(experts)
    with torch.no_grad():
        close(mixture(**packed(), use_cache=False).logits, apart(mixture))


@pytest.mark.parametrize("scope", ["block", "model"])
def test_packed_samples_are_read_apart_by_shared_gates(scope: str, experts: Experts) -> None:
    mixture = Case("llama", "prompt", scope=scope).shared(experts)
    with torch.no_grad():
        close(mixture(**by_positions(), use_cache=False).logits, apart(mixture))


def test_packed_training_has_the_gradients_of_its_samples(experts: Experts) -> None:
    """The loss of a packed row is the mean over all target tokens."""
    mixture = Case("llama", "prompt").build(experts)
    gradients = []
    for packs in (True, False):
        mixture.zero_grad()
        if packs:
            mixture(**by_positions(), use_cache=False).loss.backward()
        else:
            counts = [len(ids) - prompt for ids, prompt in zip(SAMPLES, PROMPTS, strict=True)]
            for row, count in zip(labelled(), counts, strict=True):
                given = {key: torch.tensor([value]) for key, value in row.items()}
                (mixture(**given).loss * count / sum(counts)).backward()
        trained = [each for each in mixture.parameters() if each.requires_grad]
        gradients.append([each.grad.clone() for each in trained])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


def test_positions_that_start_again_are_refused_where_the_base_mixes_samples(
    experts: Experts,
) -> None:
    mixture = Case("llama", "prompt").shared(experts)
    with pytest.raises(MixtureError, match="use_cache=False"):
        mixture(**by_positions(), use_cache=True)


def test_a_packed_sample_without_a_prompt_is_refused(experts: Experts) -> None:
    mixture, row = Case("llama", "prompt").shared(experts), by_positions()
    row["labels"] = row["input_ids"].clone()
    row["labels"][:, :4] = -100  # the first sample alone has a prompt
    with pytest.raises(MixtureError, match="prompt_mask"):
        mixture(**row, use_cache=False)


def test_the_reference_gate_refuses_packed_rows(experts: Experts) -> None:
    mixture = Case("llama", "reference").shared(experts)
    with pytest.raises(MixtureError, match="several samples"):
        mixture(**by_positions(), use_cache=False)


def test_positions_of_padded_rows_are_no_packing(experts: Experts) -> None:
    mixture, row = Case("llama", "prompt").shared(experts), tokens(1, 6)
    padded = torch.cat([tokens(1, 3, seed=5), row], 1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wide = mixture(input_ids=padded, attention_mask=mask, position_ids=positions).logits
        close(wide[:, 3:], mixture(input_ids=row).logits)
