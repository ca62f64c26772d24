"""C9: training moves gates alone, checkpointing and threads change nothing, and bf16 keeps the
contract.
"""

import threading

import pytest
import torch
from cases import ALL, CONTEXTS, GENERATING, SHAPES, Case, Experts, in_turn, over
from conftest import close, target_logits, tokens

from loramix import MixtureModel
from loramix.errors import MixtureError

# The others jump from one expert to another within bf16's rounding.
SMOOTH = [
    case
    for case in GENERATING
    if case.activation in ("softmax", "sigmoid") and case.scope == "layer"
]


def without_dropout(mixture: MixtureModel) -> MixtureModel:
    """Return the mixture in training mode, with the same answers each time."""
    for module in mixture.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # of T5's attention
            module.dropout = 0.0
    return mixture


def loss(mixture: MixtureModel) -> torch.Tensor:
    ids = tokens(2, 8)
    seq2seq = mixture.config.is_encoder_decoder
    labels = (
        tokens(2, 4, seed=1) if seq2seq else torch.cat([torch.full((2, 4), -100), ids[:, 4:]], 1)
    )
    return mixture(input_ids=ids, labels=labels, use_cache=False).loss


@over(ALL)
def test_c9_training_moves_the_gates_alone(case: Case, experts: Experts) -> None:
    mixture = without_dropout(case.build(experts))
    before = {key: value.clone() for key, value in mixture.state_dict().items()}
    trained = [parameter for parameter in mixture.parameters() if parameter.requires_grad]
    loss(mixture).backward()
    torch.optim.SGD(trained, lr=10.0).step()
    moved = {
        key for key, value in mixture.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved
    assert all(".gate." in key for key in moved)
    # Only ReLUs that no input opens get no gradient; the scores' biases always do.
    assert sum(parameter.grad is not None for parameter in trained) == len(trained)


@over(ALL)
def test_c9_gradient_checkpointing_changes_no_gradient(case: Case, experts: Experts) -> None:
    mixture, gradients = without_dropout(case.build(experts)), []
    for checkpointing in (False, True):
        if checkpointing:
            mixture.activation_checkpointing_enable()
        mixture.zero_grad()
        loss(mixture).backward()
        gradients.append(
            {key: value.grad for key, value in mixture.named_parameters() if value.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-5, rtol=1e-3)


def test_c9_gradients_are_those_of_the_formula(experts: Experts) -> None:
    """Against finite differences of the loss, for one bias of a gate."""
    mixture = without_dropout(Case("llama", "running").build(experts))
    bias = next(iter(mixture.gates.values())).score.bias
    loss(mixture).backward()
    values = []
    for step in (-3e-3, 3e-3):  # small: strong gates bend the loss
        with torch.no_grad():
            bias[0] += step
            values.append(float(loss(mixture)))
            bias[0] -= step
    assert (values[1] - values[0]) / 6e-3 == pytest.approx(float(bias.grad[0]), rel=0.1, abs=1e-4)


def test_c9_reentrant_checkpointing_is_refused(experts: Experts) -> None:
    mixture = Case("llama", "prompt").build(experts)
    with pytest.raises(MixtureError, match="use_reentrant=False"):
        mixture.gradient_checkpointing_enable({"use_reentrant": True})


@over(
    [Case(shape, context) for shape in SHAPES for context in CONTEXTS],
    few=[Case("t5", "prompt"), Case("gpt2", "token"), *(Case("llama", each) for each in CONTEXTS)],
)
def test_c9_two_threads_do_not_see_each_other(case: Case, experts: Experts) -> None:
    mixture = case.shared(experts)
    requests = [
        (tokens(1, 6, seed=1), {}),
        (tokens(2, 4, seed=2), {}),
        (tokens(1, 5, seed=3), {"c": 1.0}),
    ]
    target = tokens(1, 3, seed=4)

    def ask(index: int) -> torch.Tensor:
        ids, fixed = requests[index]
        if fixed:
            with mixture.fixed(fixed):
                return target_logits(mixture, ids, target)
        return target_logits(mixture, ids, target.expand(len(ids), -1))

    expected, wrong = [ask(index) for index in range(3)], []

    def repeat(index: int) -> None:
        wrong.extend(
            index for _ in range(8) if not torch.allclose(ask(index), expected[index], atol=1e-4)
        )

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@over(SMOOTH, few=in_turn(CONTEXTS[:-1], ["softmax", "sigmoid"]))
def test_bf16_keeps_the_contract_to_its_own_rounding(case: Case, experts: Experts) -> None:
    mixture = case.shared(experts, dtype=torch.bfloat16)
    ids, target = tokens(3, 6), tokens(3, 4, seed=1)
    together = target_logits(mixture, ids, target)
    assert together.dtype == torch.bfloat16
    scale = float(together.float().std())
    alone = torch.cat(
        [target_logits(mixture, ids[row : row + 1], target[row : row + 1]) for row in range(3)]
    )
    assert float((together - alone).float().abs().mean()) < 0.05 * scale
    exact = target_logits(case.shared(experts), ids, target)
    assert float((together.float() - exact).abs().mean()) < 0.25 * scale
    assert all(
        weights.dtype == torch.float32 for weights in mixture.weights(input_ids=ids).values()
    )


def test_autocast_leaves_the_gates_in_float32(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").shared(experts), tokens(2, 6)
    plain = mixture.weights(input_ids=ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mixture.weights(input_ids=ids)
    first = next(iter(plain))
    assert cast[first].dtype == torch.float32
    close(cast[first], plain[first])
