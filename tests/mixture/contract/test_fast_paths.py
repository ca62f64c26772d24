"""The fast paths keep the contract: folded, gathered, shared and compiled are the same function as
the plain one.
"""

import copy
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import ACTIVATIONS, MIXING, SHAPES, Case, Experts, in_turn, over
from conftest import close, strengthen, target_logits, tiny_model, tokens
from transformers import LogitsProcessor, LogitsProcessorList

from loramix import MixtureModel
from loramix.errors import MixtureError
from loramix.mixture.folding import Folding
from loramix.mixture.generation import FOLD_FROM
from loramix.mixture.update import add_product

FOLDING = [
    Case(shape, "prompt", act, mixing)
    for shape in SHAPES
    for act in ACTIVATIONS
    for mixing in MIXING
]
SPARSE = ["top-k", "top-1"]
GATHERING = [
    Case(*choice) for choice in product(SHAPES, ["prompt", "running", "token"], SPARSE, MIXING)
]
SCORES = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
EIGHT = tuple("abcdefgh")


def generated(
    mixture: MixtureModel, ids: torch.Tensor, *, fold: bool, **settings: object
) -> torch.Tensor:
    """Return the scores of six tokens."""
    found = mixture.generate(
        input_ids=ids, fold=fold, max_new_tokens=6, min_new_tokens=6, **SCORES, **settings
    )
    scores = torch.stack(found.scores)
    return scores[scores > -torch.inf]


def after_prompt(ids: torch.Tensor) -> torch.Tensor:
    """Return labels of all tokens but the first two, which are the prompt."""
    return ids.where(torch.arange(ids.shape[1]) >= 2, -100)


def frozen(mixture: MixtureModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in mixture.state_dict().items()}


@over(FOLDING, few=FOLDING[::3])
def test_folding_changes_no_score_and_no_weight(case: Case, experts: Experts) -> None:
    mixture, ids = case.shared(experts), tokens(1, 6)
    before = frozen(mixture)
    for settings in ({}, {"num_return_sequences": 2, "num_beams": 3}):
        close(
            generated(mixture, ids, fold=True, **settings),
            generated(mixture, ids, fold=False, **settings),
        )
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("shape", SHAPES)
def test_fixed_weights_fold_for_any_batch(shape: str, mixing: str, experts: Experts) -> None:
    mixture, ids = Case(shape, "token", mixing=mixing).shared(experts), tokens(3, 5)
    with mixture.fixed({"a": 0.7, "c": -0.4}):
        folded, plain = (generated(mixture, ids, fold=fold) for fold in (True, False))
    close(folded, plain)
    assert not torch.allclose(plain, generated(mixture, ids, fold=False))


def test_folding_is_done_where_it_can_be_and_pays(experts: Experts) -> None:
    mixture, made = Case("llama", "prompt").build(experts), []
    fold = mixture._folding.fold
    mixture._folding.fold = lambda *args: made.append(args) or fold(*args)
    for rows, new, folds in (
        (1, FOLD_FROM, True),
        (1, FOLD_FROM - 1, False),
        (2, FOLD_FROM, False),
    ):
        mixture.generate(
            input_ids=tokens(rows, 4), max_new_tokens=new, min_new_tokens=3, do_sample=False
        )
        assert bool(made) == folds
        made.clear()
    mixture.generate(
        input_ids=tokens(1, 4), max_length=4 + FOLD_FROM, min_new_tokens=3, do_sample=False
    )
    assert len(made) == len(mixture.layers)
    made.clear()
    mixture.generate(
        input_ids=tokens(1, 4),
        max_new_tokens=FOLD_FROM,
        min_new_tokens=3,
        do_sample=False,
        fold=False,
    )
    assert not made


def test_what_cannot_be_folded_is_refused(experts: Experts) -> None:
    with pytest.raises(MixtureError, match="'token' gate change from token to token"):
        Case("llama", "token").shared(experts).generate(input_ids=tokens(1, 4), fold=True)
    mixture = Case("llama", "prompt").shared(experts)
    with pytest.raises(MixtureError, match="every prompt has weights of its own"):
        mixture.generate(input_ids=tokens(2, 4), fold=True)
    with (
        mixture.fixed([{"a": 1.0}, {"b": 1.0}]),
        pytest.raises(MixtureError, match="fixed weights for 2 rows"),
    ):
        mixture.generate(input_ids=tokens(2, 4), fold=True)


class Interrupt(LogitsProcessor):
    """Raises what Ctrl-C raises at the fifth token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt
        return scores


@pytest.mark.parametrize("shape", SHAPES)
def test_an_interrupt_leaves_nothing_folded(shape: str, experts: Experts) -> None:
    mixture, ids = Case(shape, "prompt").build(experts), tokens(1, 6)
    before, plain = frozen(mixture), generated(mixture, ids, fold=False)
    with pytest.raises(KeyboardInterrupt):
        mixture.generate(
            input_ids=ids,
            fold=True,
            max_new_tokens=10,
            logits_processor=LogitsProcessorList([Interrupt()]),
        )
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    close(generated(mixture, ids, fold=False), plain)
    close(
        generated(mixture, tokens(1, 4, seed=5), fold=True),
        generated(mixture, tokens(1, 4, seed=5), fold=False),
    )


def test_folded_memory_is_used_again_but_never_while_it_is_needed(experts: Experts) -> None:
    mixture = Case("llama", "prompt").build(experts)
    prompts = [tokens(1, 6, seed=seed) for seed in range(3)]
    plain = [generated(mixture, ids, fold=False) for ids in prompts]
    held = mixture.generate(
        input_ids=prompts[0], fold=True, max_new_tokens=3, min_new_tokens=3, **SCORES
    )
    for ids, expected in zip(prompts[1:], plain[1:], strict=True):
        close(
            generated(mixture, ids, fold=True), expected
        )  # while the first one's cache still holds its weights
    with torch.no_grad():
        last = mixture(
            input_ids=held.sequences[:, -1:], past_key_values=held.past_key_values, use_cache=True
        )
    close(last.logits[:, -1][:, 3:], plain[0].view(6, -1)[3:4, -last.logits.shape[-1] + 3 :])
    with torch.inference_mode():
        generated(mixture, prompts[0], fold=True)
    close(generated(mixture, prompts[1], fold=True), plain[1])


def test_folded_memory_is_given_back_before_training(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").build(experts), tokens(1, 6)
    fold, kept = mixture._folding.fold, []

    def watched(*args: object) -> object:
        made = fold(*args)
        kept.append(weakref.ref(made.weight_OD))
        return made

    mixture._folding.fold = watched
    before = generated(mixture, ids, fold=True)
    assert kept
    assert all(weight() is not None for weight in kept)
    mixture.train()
    assert all(weight() is None for weight in kept)
    close(generated(mixture.eval(), ids, fold=True), before)


def test_threads_fold_apart(experts: Experts) -> None:
    mixture = Case("llama", "prompt").shared(experts)
    prompts = [tokens(1, 6, seed=seed) for seed in range(3)]
    expected, wrong = [generated(mixture, ids, fold=False) for ids in prompts], []

    def repeat(index: int) -> None:
        wrong.extend(
            index
            for _ in range(5)
            if not torch.allclose(
                generated(mixture, prompts[index], fold=True), expected[index], atol=1e-4
            )
        )

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mixture_that_has_folded_can_be_copied(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").shared(experts), tokens(1, 6)
    folded = generated(mixture, ids, fold=True)
    close(generated(copy.deepcopy(mixture), ids, fold=True), folded)
    assert pickle.loads(pickle.dumps(mixture._folding)) is not mixture._folding


def test_layers_with_hooks_are_not_folded(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").build(experts), tokens(1, 6)
    for layer in mixture.layers.values():
        layer.base.register_forward_hook(lambda module, args, output: output * 1.5)
    close(generated(mixture, ids, fold=True), generated(mixture, ids, fold=False))


@over(GATHERING, few=in_turn(["prompt", "running", "token"], SPARSE))
def test_gathering_the_chosen_experts_changes_nothing(case: Case, experts: Experts) -> None:
    """Where gradients are wanted, all eight experts are multiplied; elsewhere those that some row
    has chosen.
    """
    mixture = case.shared(experts, EIGHT)
    for rows in (1, 3):
        ids, target = tokens(rows, 6), tokens(rows, 4, seed=1)
        gathered = target_logits(mixture, ids, target)
        with torch.enable_grad():
            whole = torch.cat([ids, target], 1)
            dense = (
                mixture(input_ids=ids, decoder_input_ids=target)
                if case.shape == "t5"
                else mixture(
                    input_ids=whole, prompt_mask=torch.arange(10)[None].expand(rows, -1) < 6
                )
            ).logits[:, -4:]
        assert dense.requires_grad
        close(gathered, dense.detach())
    scores = [generated(mixture, ids, fold=False, use_cache=cached) for cached in (True, False)]
    close(*scores)


def test_layers_that_read_one_input_share_a_down_projection(experts: Experts) -> None:
    shared = {}
    for shape in SHAPES:
        mixture = Case(shape, "prompt").shared(experts)
        products: dict[int, list[str]] = {}
        for name, layer in mixture.layers.items():
            products.setdefault(id(layer.shared_a), []).append(name.rpartition(".")[2])
        shared[shape] = [sorted(names) for names in products.values()]
        kept = [
            layer.stacked.down_RD.shape[0]
            for layer in mixture.layers.values()
            if layer.stacked is not None
        ]
        assert kept == [12 * len(names) for names in shared[shape]]  # three experts of rank 4
    assert shared["llama"] == [["k_proj", "q_proj", "v_proj"], ["o_proj"]] * 2
    assert shared["gpt2"] == [["c_attn"], ["c_proj"], ["c_proj"]] * 2
    assert (
        shared["t5"]
        == [["k", "q", "v"], ["o"]] * 2 + [["k", "q", "v"], ["o"], ["q"], ["k", "v"], ["o"]] * 2
    )


def test_backward_keeps_the_low_rank_activations_alone(experts: Experts) -> None:
    """Beside what the base keeps, there is nothing of all tokens that is as wide as a layer: three
    experts have 12.
    """
    wide = []
    for model in (
        tiny_model("llama").requires_grad_(False),
        Case("llama", "prompt").shared(experts),
    ):
        inner = model.base if isinstance(model, MixtureModel) else model
        inputs = (
            inner.get_input_embeddings()(tokens(2, 7)).detach().requires_grad_()
        )  # so that the base has a graph
        kept: list[int] = []

        def keep(value: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model(inputs_embeds=inputs, attention_mask=torch.ones(2, 7), use_cache=False)
        wide.append(sum(size % 14 == 0 and size >= 14 * 16 for size in kept))
    assert wide[0] == wide[1] > 0


@pytest.mark.parametrize("context", ["prompt", "token"])
def test_gradient_checkpointing_keeps_no_input_of_a_layer(context: str, experts: Experts) -> None:
    mixture = Case("llama", context).build(experts)
    mixture.activation_checkpointing_enable()
    mixture.train()
    inputs = []
    for layer in mixture.base.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: inputs.append(weakref.ref(args[0]))
        )
    output = mixture(input_ids=tokens(2, 5), labels=after_prompt(tokens(2, 5)))
    assert len(inputs) == 2
    assert [kept() for kept in inputs] == [None, None]
    output.loss.backward()
    assert len(inputs) == 4, "the blocks ran a second time"


def test_a_shared_down_projection_is_dropped_once_all_have_read_it(experts: Experts) -> None:
    mixture = Case("llama", "prompt").build(experts)
    attention, made = mixture.base.model.layers[1].self_attn, []
    attention.q_proj.stacked.register_forward_hook(
        lambda module, args, parts: made.append(list(map(weakref.ref, parts)))
    )
    attention.o_proj.register_forward_pre_hook(
        lambda module, args: made.append([kept() for kept in made[0]])
    )
    with torch.no_grad():
        mixture(input_ids=tokens(2, 5))
    assert made[1:] == [[None] * 3], "one product for q, k and v, gone before o"


def test_nothing_below_the_lowest_gate_has_a_graph(make_expert: Callable[..., Path]) -> None:
    folder = make_expert("llama", "upper", seed=1, layers_to_transform=[1])
    mixture = strengthen(
        MixtureModel.from_experts(tiny_model("llama"), {"upper": folder, "again": folder})
    )
    found = []
    for layer in mixture.base.model.layers:
        layer.register_forward_hook(lambda module, args, output: found.append(output.requires_grad))
    mixture(input_ids=tokens(2, 5), labels=after_prompt(tokens(2, 5))).loss.backward()
    assert found == [False, True]


def check_compiled(*arguments: str) -> None:
    script = Path(__file__).with_name(
        "compiled.py"
    )  # types are checked in this process, which cannot be compiled
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compiling_breaks_no_graph_and_changes_no_score() -> None:
    check_compiled("scores", "eager", "llama-prompt")


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_training_and_generation_compile_too(shape: str) -> None:
    contexts = ("prompt", "running", "token", "reference")
    check_compiled("whole", "eager", *(f"{shape}-{context}" for context in contexts))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "t5"])
def test_compiled_code_computes_the_same(shape: str) -> None:
    check_compiled("whole", "inductor", f"{shape}-prompt")


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_in_bf16_is_about_as_exact(shape: str, experts: Experts) -> None:
    """Folding rounds W + Δ; otherwise W x and Δ x are rounded. Against the layer computed in
    float64.
    """
    mixture, weights_B1E = (
        Case(shape, "prompt").shared(experts, dtype=torch.bfloat16),
        torch.tensor([[[0.5, 0.3, 0.2]]]),
    )
    errors = []
    for layer in mixture.layers.values():
        update = replace(layer.weighted(weights_B1E, sparse=False), down_RD=layer.down)
        folded = Folding().fold(layer.base, update)
        x_BTD = torch.randn(
            1, 64, layer.down.shape[1], generator=torch.Generator().manual_seed(0)
        ).bfloat16()
        up_OR, down_RD = (
            (update.up_OR.double() * update.weights_BTR[0].double()),
            update.down_RD.double(),
        )
        weight_OD = layer.weight.T if shape == "gpt2" else layer.weight
        exact = x_BTD.double() @ (weight_OD.double() + up_OR @ down_RD).T + (
            0 if layer.bias is None else layer.bias
        )
        low_BTR = update.weigh(torch.nn.functional.linear(x_BTD, update.down_RD))
        with torch.no_grad():
            plain = add_product(layer.base(x_BTD), low_BTR, update.up_OR)
        at_once = torch.nn.functional.linear(x_BTD, folded.weight_OD, folded.bias_O)
        errors.append(
            [(found.double() - exact).square().mean().sqrt() for found in (plain, at_once)]
        )
    plain_error, folded_error = torch.tensor(errors).mean(0)
    assert folded_error < 1.5 * plain_error
