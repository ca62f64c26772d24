"""Measures of routing weights."""

import math

import pytest
import torch

from loramix.mixture.routing_measures import entropy, shares


def test_shares_are_the_weights_over_their_sum() -> None:
    assert torch.allclose(shares(torch.tensor([[0.1, 0.3]])), torch.tensor([[0.25, 0.75]]))
    assert shares(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_entropy_lies_between_one_expert_and_all_alike() -> None:
    even, sure = torch.full((2, 4), 0.25), torch.eye(4)
    torch.testing.assert_close(entropy(even), torch.full((2,), math.log(4)))
    torch.testing.assert_close(entropy(sure), torch.zeros(4), atol=1e-6, rtol=0)
    assert float(entropy(torch.zeros(3))) == 0.0


@pytest.mark.parametrize("strength", [1.0, 0.3, 0.02])
def test_entropy_is_of_shares_however_strong_the_weights(strength: float) -> None:
    """Weights of 0.2 and 0.1, as sigmoid gates or a base slot leave them: 0.637 nats, not 0.552."""
    weights = strength * torch.tensor([2 / 3, 1 / 3])
    assert float(entropy(weights)) == pytest.approx(0.6365, abs=1e-4)
