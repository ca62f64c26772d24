"""C5, C6 and C8: what weights mean. One expert alone is its adapter, fixed weights are the exact
merge.
"""

import pytest
import torch
from cases import ALL, MIXING, SHAPES, Case, Experts, over
from conftest import close, peft_logits, target_logits, tiny_model, tokens

from loramix import MixtureModel
from loramix.errors import MixtureError
from loramix.mixture.linear import is_transposed

IDS, TARGET = tokens(2, 6), tokens(2, 5, seed=1)
CONTEXTS = ["prompt", "token"]


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_c5_one_expert_alone_is_its_peft_adapter(
    shape: str, context: str, mixing: str, experts: Experts
) -> None:
    mixture = Case(shape, context, mixing=mixing).shared(experts)
    for name, folder in experts(shape).items():
        with mixture.fixed({name: 1.0}):
            close(target_logits(mixture, IDS, TARGET), peft_logits(shape, folder, IDS, TARGET))


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c5_a_gate_that_chooses_one_expert_is_its_peft_adapter(
    shape: str, mixing: str, experts: Experts
) -> None:
    """The same through the gates' own decision."""
    mixture = Case(shape, "prompt", mixing=mixing).build(experts)
    with torch.no_grad():
        for gate in mixture.gates.values():
            gate.score.weight.zero_()
            gate.score.bias.copy_(torch.tensor([-100.0, 100.0, -100.0]))
    close(
        target_logits(mixture, IDS, TARGET),
        peft_logits(shape, experts(shape)["b"], IDS, TARGET),
    )


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c5_no_expert_is_the_base(shape: str, mixing: str, experts: Experts) -> None:
    mixture = Case(shape, "prompt", mixing=mixing).shared(experts)
    with mixture.fixed({}):
        assert torch.equal(
            target_logits(mixture, IDS, TARGET), target_logits(tiny_model(shape), IDS, TARGET)
        )


def merge(shape: str, mixture: MixtureModel, weights: list[float]) -> torch.nn.Module:
    """Return the tiny base with the mixture's formula at these weights written into its
    matrices.
    """
    merged = tiny_model(shape)
    for name, layer in mixture.layers.items():
        updates = [expert.updates[name] for expert in mixture.experts]
        if layer.config.mixing == "output":
            delta = sum(
                w * u.scale * u.up_OR @ u.down_RD for w, u in zip(weights, updates, strict=True)
            )
        else:
            up = sum(w * u.scale * u.up_OR for w, u in zip(weights, updates, strict=True))
            delta = up @ sum(w * u.down_RD for w, u in zip(weights, updates, strict=True))
        merged.get_submodule(name).weight.data += delta.T if is_transposed(layer.base) else delta
    return merged


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_c6_fixed_weights_equal_the_merged_model(shape: str, mixing: str, experts: Experts) -> None:
    mixture = Case(shape, "prompt", mixing=mixing).shared(experts)
    with mixture.fixed({"a": 0.7, "b": -0.4, "c": 0.2}):
        close(
            target_logits(mixture, IDS, TARGET),
            target_logits(merge(shape, mixture, [0.7, -0.4, 0.2]), IDS, TARGET),
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_c6_gated_weights_equal_the_model_merged_for_that_prompt(
    shape: str, experts: Experts
) -> None:
    """What the gates report is what they apply: each layer's weights, merged by hand."""
    mixture, merged = Case(shape, "prompt").shared(experts), tiny_model(shape)
    ids, target = IDS[:1], TARGET[:1]
    for name, weights_BE in mixture.weights(input_ids=ids).items():
        updates = [expert.updates[name] for expert in mixture.experts]
        delta = sum(
            w * u.scale * u.up_OR @ u.down_RD for w, u in zip(weights_BE[0], updates, strict=True)
        )
        merged.get_submodule(name).weight.data += delta.T if shape == "gpt2" else delta
    close(target_logits(mixture, ids, target), target_logits(merged, ids, target))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_may_have_its_own_fixed_weights(shape: str, experts: Experts) -> None:
    mixture, rows = Case(shape, "prompt").shared(experts), [{"a": 1.0}, {"b": 0.5, "c": -1.0}]
    with mixture.fixed(rows):
        together = target_logits(mixture, IDS, TARGET)
        beams = mixture.generate(
            input_ids=IDS, num_beams=3, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    for index, row in enumerate(rows):
        with mixture.fixed(row):
            close(
                together[index : index + 1],
                target_logits(mixture, IDS[index : index + 1], TARGET[index : index + 1]),
            )
            alone = mixture.generate(
                input_ids=IDS[index : index + 1],
                num_beams=3,
                max_new_tokens=4,
                min_new_tokens=4,
                do_sample=False,
            )
        assert torch.equal(alone[0], beams[index])
    with (
        mixture.fixed([{"a": 1.0}] * 3),
        pytest.raises(MixtureError, match="fixed weights for 3 rows, but the call has 2"),
    ):
        target_logits(mixture, IDS, TARGET)
    with mixture.fixed([{"a": 1.0}] * 2), pytest.raises(MixtureError, match="one dict per row"):
        target_logits(mixture, IDS.repeat(2, 1), TARGET.repeat(2, 1))


@over(ALL)
def test_c8_the_order_of_experts_changes_nothing(case: Case, experts: Experts) -> None:
    mixture = case.shared(experts)
    plain = target_logits(mixture, IDS, TARGET)
    for order in ([1, 0, 2], [1, 2, 0]):  # every other order is made of these two
        other = case.build(experts, ["abc"[index] for index in order])
        for name, gate in mixture.gates.items():
            other.gates[name].load_state_dict(gate.rearranged(order).state_dict())
        close(target_logits(other, IDS, TARGET), plain)


def test_unknown_experts_get_the_nearest_name(experts: Experts) -> None:
    mixture = Case("llama", "prompt").shared(experts)
    with (
        pytest.raises(MixtureError, match=r"no expert 'bb' \(did you mean 'b'\?\)"),
        mixture.fixed({"bb": 1.0}),
    ):
        pass


def test_fixed_weights_are_what_weights_reports(experts: Experts) -> None:
    mixture = Case("llama", "token").shared(experts)
    with mixture.fixed({"b": 0.25}):
        found = mixture.weights(input_ids=IDS)
    assert all(weights.tolist() == [[0.0, 0.25, 0.0]] * 2 for weights in found.values())
