"""Losses on what gates decide."""

import math

import pytest
import torch

from loramix.experiment.training.gate_losses import imbalance, label_loss, means_of_experts
from loramix.mixture.routing_measures import entropy


def test_their_values_at_the_ends_of_their_ranges() -> None:
    even, sure = torch.full((1, 2, 4), 0.25), torch.eye(4)[None, :2]
    assert float(imbalance(torch.eye(4)[None])) == pytest.approx(0.0, abs=1e-6)
    assert float(imbalance(sure[:, :1])) == pytest.approx(3.0)
    assert float(label_loss(even, 2)) == pytest.approx(math.log(4))
    assert float(label_loss(sure[:, :1], 0)) == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(float(label_loss(sure[:, :1], 1)))


def test_weights_that_do_not_sum_to_one_count_by_their_shares() -> None:
    certain = torch.tensor([[[0.5, 0.0]]])
    assert float(label_loss(certain, 0)) == pytest.approx(0.0, abs=1e-6)
    assert float(imbalance(certain)) == pytest.approx(1.0)


@pytest.mark.parametrize("start", [torch.zeros(3, 3), torch.tensor([[2.0, 0.0, 0.0]] * 3)])
def test_descending_each_does_what_it_is_for(start: torch.Tensor) -> None:
    for loss, done in (
        (lambda w: entropy(w).mean(), lambda w: float(w.max()) > 0.8),
        (lambda w: imbalance(w), lambda w: abs(float(w.mean(0)[0]) - 1 / 3) < 0.05),
        (lambda w: label_loss(w, 1), lambda w: float(w[:, 1].min()) > 0.8),
    ):
        scores = (
            start + 0.01 * torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
        ).requires_grad_()
        optimizer = torch.optim.Adam([scores], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss(scores.softmax(-1)[None]).backward()
            optimizer.step()
        assert done(scores.detach().softmax(-1))


def test_an_expert_of_two_tasks_is_used_no_more_than_one_of_one() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    right = means_of_experts({0: first, 1: second, 2: second}, own=[0, 1, 1])
    assert float(imbalance(right)) == pytest.approx(0.0, abs=1e-6)
    alone = means_of_experts({1: second, 2: first}, own=[0, 1, 1])
    torch.testing.assert_close(alone, torch.full((1, 1, 2), 0.5))
    assert torch.equal(means_of_experts({1: second, 0: first}, own=[0, 1])[0], torch.eye(2).flip(0))
