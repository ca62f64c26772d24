"""Gates that carry evidence on: each decides by all scores so far."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import close, strengthen, tiny_model, tokens

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError

Experts = Callable[..., dict[str, Path]]


def build(experts: Experts, shape: str, **gate: object) -> MixtureModel:
    base = tiny_model(shape)
    return strengthen(MixtureModel.from_experts(base, experts(shape), gate=GateConfig(**gate)))


@pytest.mark.parametrize("context", ["prompt", "running", "token"])
@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_weights_are_those_of_all_scores_so_far_over_the_blocks(
    shape: str, context: str, experts: Experts
) -> None:
    mixture = build(experts, shape, context=context, carry=True)
    scores: dict[str, torch.Tensor] = {}
    for reader, gate in mixture.gates.items():
        gate.score.register_forward_hook(
            lambda module, args, output, reader=reader: scores.update({reader: output})
        )
    found = mixture.weights(input_ids=tokens(2, 6))
    stack = [reader for reader in scores if reader.startswith(("encoder", "model"))]
    assert len(stack) > 2
    for place, reader in enumerate(stack):
        together = torch.stack([scores[each] for each in stack[: place + 1]]).sum(0)
        blocks = 1 + int(next(part for part in reader.split(".") if part.isdigit()))
        close(found[reader], (together / blocks).softmax(-1).view_as(found[reader]))


def test_a_mixture_of_an_earlier_version_decides_as_it_did(
    experts: Experts, tmp_path: Path
) -> None:
    alone = build(experts, "llama")
    alone.save_pretrained(tmp_path / "mixture")
    file = tmp_path / "mixture" / "mixture_config.json"
    config = json.loads(file.read_text())
    config["schema_version"] = 2
    for later in ("carry", "first_pass", "pooling"):
        del config["gate"][later]
    file.write_text(json.dumps(config))
    again = MixtureModel.from_pretrained(tmp_path / "mixture", base=tiny_model("llama")).eval()
    ids = tokens(1, 7)
    with torch.no_grad():
        close(again(input_ids=ids).logits, alone(input_ids=ids).logits)
        carrying = build(experts, "llama", carry=True)(input_ids=ids).logits
        assert float((carrying - alone(input_ids=ids).logits).abs().max()) > 1e-2


def test_reference_gates_decide_alone(experts: Experts) -> None:
    with pytest.raises((ValueError, MixtureError), match="a reference gate decides alone"):
        GateConfig(context="reference", carry=True)
