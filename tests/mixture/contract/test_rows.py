"""C1 and C2: what else is in the batch, and how it is padded, changes nothing."""

import pytest
import torch
from cases import ALL, Case, Experts, over, some_examples
from conftest import close, target_logits, tokens
from hypothesis import given
from hypothesis import strategies as st

from loramix import MixtureModel

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def padded(rows: list[torch.Tensor], width: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows as one batch and its attention mask; padding holds tokens that would matter
    if they were read.
    """
    ids, mask = torch.full((len(rows), width), 5), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


@torch.no_grad()
def outputs(mixture: MixtureModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return what the mixture computes at the real tokens of each row (T5: at three targets)."""
    if mixture.config.is_encoder_decoder:
        target = tokens(1, 3, seed=1).expand(len(ids), -1)
        return list(mixture(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = mixture(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return [row[keep.bool()] for row, keep in zip(logits, mask, strict=True)]


@over(ALL)
def test_c1_c2_a_row_is_the_same_alone_and_in_any_padded_batch(
    case: Case, experts: Experts
) -> None:
    mixture = case.shared(experts)

    @some_examples
    @given(
        lengths=LENGTHS,
        extra=st.integers(0, 4),
        seed=st.integers(0, 99),
        side=st.sampled_from(["left", "right"]),
    )
    def check(lengths: list[int], extra: int, seed: int, side: str) -> None:
        if case.shape == "t5":
            side = "right"  # T5's relative positions in cross-attention tell where a prompt starts
        rows = [tokens(1, length, seed=seed + index)[0] for index, length in enumerate(lengths)]
        batch = outputs(mixture, *padded(rows, max(lengths) + extra, side))
        for row, found in zip(rows, batch, strict=True):
            close(found, outputs(mixture, row[None], torch.ones_like(row)[None])[0])

    check()


@pytest.mark.parametrize("context", ["prompt", "running", "token", "reference"])
def test_c2_left_padding_does_not_reach_the_gates_of_an_encoder(
    context: str, experts: Experts
) -> None:
    mixture, row = Case("t5", context).shared(experts), tokens(1, 5)[0]
    ids, mask = padded([row], 9, "left")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    wide = mixture.weights(input_ids=ids, attention_mask=mask)[name]
    plain = mixture.weights(input_ids=row[None])[name]
    close(wide[:, 4:] if mixture.gate_config.per_token else wide, plain)


@pytest.mark.axes(True)
@over(ALL)
def test_gates_tell_inputs_apart(case: Case, experts: Experts) -> None:
    """The other tests would pass with gates that always say the same."""
    mixture = case.shared(experts)
    found = [mixture.weights(input_ids=tokens(1, 2, seed=seed)) for seed in range(6)]
    differences = [
        float((weights[name] - found[0][name]).abs().max()) for weights in found for name in weights
    ]
    assert max(differences) > 0.1
    assert all(weights.shape[-1] == 3 for weights in found[0].values())


@over(ALL)
def test_c2_padded_targets_change_no_loss(case: Case, experts: Experts) -> None:
    mixture, ids, target = case.shared(experts), tokens(2, 4), tokens(2, 3, seed=1)
    gap = torch.full((2, 2), -100)
    if case.shape == "t5":
        losses = [
            mixture(input_ids=ids, labels=labels).loss
            for labels in (target, torch.cat([target, gap], 1))
        ]
    else:
        whole, ignored = torch.cat([ids, target], 1), torch.full_like(ids, -100)
        wide = torch.cat([whole, torch.zeros_like(gap)], 1)
        losses = [
            mixture(input_ids=whole, labels=torch.cat([ignored, target], 1)).loss,
            mixture(
                input_ids=wide,
                attention_mask=(wide > 0).long(),
                labels=torch.cat([ignored, target, gap], 1),
            ).loss,
        ]
    close(*losses)


def test_prompt_gates_read_the_prompt_alone_when_labels_are_given(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").shared(experts), tokens(1, 9)
    labels = torch.cat([torch.full((1, 5), -100), ids[:, 5:]], 1)
    close(
        mixture(input_ids=ids, labels=labels).logits[:, 5:],
        target_logits(mixture, ids[:, :5], ids[:, 5:]),
    )
    kept = mixture(input_ids=ids, labels=labels[:, -5:], logits_to_keep=5)
    close(kept.loss, mixture(input_ids=ids, labels=labels).loss)
