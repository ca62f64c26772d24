"""Answers and losses of a model."""

import pytest
import torch

from loramix.bases.loading import load_base
from loramix.data.tokens.batches import Collator
from loramix.experiment.answers import encode_all, mean_loss, target_losses
from loramix.experiment.reading import load_recipe


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_losses_per_sample_are_the_models_own(name: str) -> None:
    """Their mean, weighed by tokens, is the loss that the model itself returns for the batch."""
    recipe, base = load_recipe("tiny"), load_base(name)
    task = recipe.tasks[0]
    asked = [(task, "rain", "soft rain / falls"), (task, "a", "b")]
    encoded = encode_all(base.model, base.tokenizer, recipe, asked)
    losses = target_losses(base.model, base.tokenizer, encoded, batch_size=2)
    with torch.no_grad():
        batch = Collator(base.tokenizer, causal=not base.model.config.is_encoder_decoder)(encoded)
        whole = float(base.model(**batch).loss)
    assert [loss.tokens for loss in losses] == [len(each.target) for each in encoded]
    assert mean_loss(losses) == pytest.approx(whole, rel=1e-5)
