"""Gates that know their experts before training."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import SHAPES, Case, Experts, over
from conftest import close, tiny_model, tokens

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError
from loramix.mixture.arrow import from_adapters
from loramix.mixture.prototypes import from_examples

NAMES = ["a", "b", "c"]


def build(experts: Experts, shape: str, **gate: object) -> MixtureModel:
    return MixtureModel.from_experts(
        tiny_model(shape), experts(shape), gate=GateConfig(**gate)
    ).eval()


def prompts(expert: str, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return prompts over a few words of the expert's own."""
    start = 5 + 30 * NAMES.index(expert)
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(start, start + 3, (1, 8), generator=generator)}
        for _ in range(count)
    ]


CONTEXTS, ACTIVATIONS = ["prompt", "running", "token"], ["softmax", "sigmoid", "top-k"]
LEARNING = [Case(*choice) for choice in product(SHAPES, CONTEXTS, ACTIVATIONS)]
FEW = [
    Case(shape, context, ACTIVATIONS[(row + column) % 3])
    for row, shape in enumerate(SHAPES)
    for column, context in enumerate(CONTEXTS)
]
# A sigmoid does not take from one expert what it gives another.
ENOUGH = {"softmax": 0.6, "sigmoid": 0.42, "top-k": 0.6}


def share(mixture: MixtureModel, name: str, prompt: dict[str, torch.Tensor]) -> float:
    """Return an expert's mean share of the weights for a prompt."""
    found = mixture.mean_weights(**prompt)
    if mixture.config.is_encoder_decoder and mixture.gate_config.context != "prompt":
        # a decoder that has read one token knows nothing yet
        found = {layer: found[layer] for layer in found if layer.startswith("encoder")}
    place = mixture.expert_names.index(name)
    shares = [weights[0, place] / weights[0].sum() for weights in found.values()]
    return float(torch.stack(shares).mean())


@over(LEARNING, few=FEW)
def test_a_few_examples_are_enough_to_prefer_the_right_expert(case: Case, experts: Experts) -> None:
    gate = {"context": case.context, "activation": case.activation}
    mixture = build(experts, case.shape, **gate, temperature=0.5)
    from_examples(mixture, {name: prompts(name, 4, seed=1) for name in NAMES})
    for name in NAMES:
        shares = [share(mixture, name, prompt) for prompt in prompts(name, 3, seed=2)]
        assert sum(shares) / len(shares) > ENOUGH[case.activation], (name, shares)


def test_prototypes_are_the_nearest_mean(experts: Experts) -> None:
    """The rule in the perceptron against the rule on paper."""
    mixture = build(experts, "llama")
    examples = {name: prompts(name, 4, seed=1) for name in NAMES}
    reader, gate = next(iter(mixture.gates.items()))
    seen: list[torch.Tensor] = []
    hook = gate.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 0]))
    for name in NAMES:
        for prompt in examples[name]:
            mixture.weights(**prompt)
    hook.remove()
    contexts = torch.cat(seen).view(3, 4, -1)  # (experts, prompts, width)
    means = contexts.mean(1)
    from_examples(mixture, examples, sharpness=3.0, separated=False)
    apart = (contexts - means[:, None]).flatten(0, 1)
    scatter = apart.T @ apart / len(apart)
    ridge = scatter.trace() / len(scatter)
    root = torch.linalg.cholesky(torch.linalg.inv(scatter + ridge * torch.eye(len(scatter))))
    white = means @ root
    scale = 2 * 3.0 / torch.pdist(white).square().mean()
    distances = (torch.cat(seen)[:1] @ root - white).square().sum(1)
    close(mixture.weights(**examples["a"][0])[reader][0], (-scale / 2 * distances).softmax(0))


def test_directions_in_which_prompts_of_one_expert_differ_count_less(experts: Experts) -> None:
    """Two halves of every expert's prompts in other words: what these words change is no reason."""
    mixture = build(experts, "llama")
    words = [torch.tensor([[95, 96, 95, 96]]), torch.tensor([[4, 3, 4, 3]])]
    examples = {}
    for name in NAMES:
        worded = []
        for number, prompt in enumerate(prompts(name, 8, seed=1)):
            worded.append({"input_ids": torch.cat([words[number % 2], prompt["input_ids"]], 1)})
        examples[name] = worded
    from_examples(mixture, examples)
    reader = next(iter(mixture.gates))
    for place, name in enumerate(NAMES):
        weights = mixture.weights(**prompts(name, 1, seed=2)[0])[reader][0]
        assert float(weights[place]) > 0.9, name


@pytest.mark.parametrize("context", ["token", "running", "prompt", "reference"])
def test_arrow_prefers_the_update_that_amplifies_the_input(experts: Experts, context: str) -> None:
    mixture = build(experts, "llama", context=context)
    from_adapters(mixture, sharpness=2.0)
    reader = next(iter(mixture.gates))
    x = mixture.base.model.layers[0].input_layernorm(mixture.base.model.embed_tokens(tokens(1, 1)))
    context_BTD = (
        x if context == "reference" else torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)
    )
    scores = []
    for expert in mixture.experts:
        update = expert.updates[reader]
        direction = torch.linalg.svd(update.up_OR @ update.down_RD, full_matrices=False).Vh[0]
        scores.append(2.0 * (context_BTD[0, 0] @ direction).abs())
    found = mixture.weights(input_ids=tokens(1, 1))[reader]
    close(found.flatten(), torch.stack(scores).softmax(0))


def test_experts_without_an_update_where_a_gate_reads_score_nothing(
    make_expert: Callable[..., Path],
) -> None:
    folders = {
        "q": make_expert("llama", "q", seed=1, target_modules=["q_proj"]),
        "v": make_expert("llama", "v", seed=2, target_modules=["v_proj"]),
    }
    mixture = MixtureModel.from_experts(tiny_model("llama"), folders)
    from_adapters(mixture)
    weights = mixture.weights(input_ids=tokens(1, 4))["model.layers.0.self_attn.q_proj"][0]
    assert float(weights[0]) > 0.5


def test_prototypes_can_be_trained_further(experts: Experts) -> None:
    mixture = build(experts, "llama")
    from_examples(mixture, {name: prompts(name, 2, seed=1) for name in NAMES})
    labels = tokens(1, 8)
    labels[:, :4] = -100  # the prompt
    mixture(**prompts("a", 1, seed=3)[0], labels=labels).loss.backward()
    assert all(float(gate.score.bias.grad.abs().sum()) > 0 for gate in mixture.gates.values())


def test_what_prototypes_need_is_said(experts: Experts) -> None:
    examples = {name: prompts(name, 1, seed=1) for name in NAMES}
    with pytest.raises(MixtureError, match="none for b, c"):
        from_examples(build(experts, "llama"), {"a": examples["a"]})
    with pytest.raises(MixtureError, match="no expert 'd'"):
        from_examples(build(experts, "llama"), {**examples, "d": examples["a"]})
    with pytest.raises(MixtureError, match="use hidden=3 or more"):
        from_examples(build(experts, "llama", hidden=2), examples)
    with pytest.raises(MixtureError, match="use hidden=6 or more"):
        from_adapters(build(experts, "llama", hidden=5))
    with pytest.raises(MixtureError, match="from_adapters"):
        from_examples(build(experts, "llama", context="reference"), examples)
    with pytest.raises(MixtureError, match="on which no adapter acts"):
        from_adapters(build(experts, "t5"))
