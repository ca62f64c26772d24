"""A prompt is read whole, and only the prompt: caches that were filled before, labels, threads."""

import copy
import threading

import pytest
import torch
from cases import Case, Experts
from conftest import close, peft_logits, target_logits, tiny_model, tokens

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError

GREEDY = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True}


def prefilled(mixture: MixtureModel, prefix: torch.Tensor) -> object:
    with torch.no_grad():
        return mixture(input_ids=prefix, use_cache=True).past_key_values


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("context", ["running", "token"])
def test_a_cached_prefix_changes_no_score(shape: str, context: str, experts: Experts) -> None:
    mixture = Case(shape, context).shared(experts)
    cache = prefilled(mixture, tokens(1, 6))
    for seed in (2, 3):
        ids = torch.cat([tokens(1, 6), tokens(1, 4, seed=seed)], 1)
        plain = mixture.generate(input_ids=ids, output_scores=True, **GREEDY)
        again = mixture.generate(
            input_ids=ids, past_key_values=copy.deepcopy(cache), output_scores=True, **GREEDY
        )
        assert torch.equal(plain.sequences, again.sequences)
        close(torch.stack(plain.scores), torch.stack(again.scores))


def test_a_prompt_gate_refuses_a_cached_prefix_and_a_second_turn(experts: Experts) -> None:
    mixture = Case("llama", "prompt").shared(experts)
    ids = torch.cat([tokens(1, 6), tokens(1, 4, seed=2)], 1)
    with pytest.raises(MixtureError, match="without past_key_values"):
        mixture.generate(
            input_ids=ids, past_key_values=prefilled(mixture, tokens(1, 6)), max_new_tokens=2
        )
    first = mixture.generate(input_ids=tokens(1, 4), **GREEDY)
    turn = torch.cat([first.sequences, tokens(1, 3, seed=9)], 1)
    with pytest.raises(MixtureError, match="earlier turns of a chat included"):
        mixture.generate(input_ids=turn, past_key_values=first.past_key_values, max_new_tokens=2)
    more, cache = torch.ones(1, 3, dtype=torch.bool), prefilled(mixture, tokens(1, 6))
    with pytest.raises(MixtureError, match="cannot read more of it"):
        mixture(input_ids=tokens(1, 3), prompt_mask=more, past_key_values=cache)


@pytest.mark.parametrize("then", [{"b": 1.0}, {"a": 0.5}, None])
def test_a_cache_of_other_weights_is_refused(then: dict | None, experts: Experts) -> None:
    """What a layer has put into a cache depends on the weights that it had."""
    mixture = Case("llama", "token").shared(experts)
    with mixture.fixed({"a": 1.0}):
        cache = prefilled(mixture, tokens(1, 4))
        mixture(input_ids=tokens(1, 1), past_key_values=copy.deepcopy(cache))
    with pytest.raises(MixtureError, match="empty"):
        mixture(input_ids=tokens(1, 1), past_key_values=cache, weights=then)
    foreign = tiny_model("llama")(input_ids=tokens(1, 4), use_cache=True).past_key_values
    with mixture.fixed({"a": 1.0}), pytest.raises(MixtureError, match="other weights"):
        mixture(input_ids=tokens(1, 1), past_key_values=foreign)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_labels_without_a_prompt_are_refused(shape: str, experts: Experts) -> None:
    mixture, ids = Case(shape, "prompt").shared(experts), tokens(2, 6)
    with pytest.raises(MixtureError, match=r"-100.*prompt_mask.*context='running'"):
        mixture(input_ids=ids, labels=ids)
    one_bare = ids.clone()
    one_bare[1, :3] = -100
    with pytest.raises(MixtureError, match="row 0"):
        mixture(input_ids=ids, labels=one_bare)
    prompts = torch.zeros_like(ids).bool()
    prompts[:, :2] = True
    assert mixture(input_ids=ids, labels=ids, prompt_mask=prompts).loss > 0
    for context in ("running", "token"):
        assert Case(shape, context).shared(experts)(input_ids=ids, labels=ids).loss > 0


def test_a_call_takes_weights_in_any_thread(experts: Experts) -> None:
    folders = experts("llama")
    mixture = Case("llama", "prompt").shared(experts)
    ids, target, found = tokens(2, 5), tokens(2, 3, seed=1), {}

    def ask(name: str) -> None:
        mask = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1).bool()
        whole = torch.cat([ids, target], 1)
        with torch.no_grad():
            logits = mixture(input_ids=whole, prompt_mask=mask, weights={name: 1.0}).logits
        found[name] = logits[:, 5:]

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        close(found[name], peft_logits("llama", folders[name], ids, target))


def test_a_call_takes_weights_for_every_row(experts: Experts) -> None:
    mixture, ids = Case("llama", "prompt").shared(experts), tokens(2, 5)
    together = mixture.generate(
        input_ids=ids, weights=[{"a": 1.0}, {"b": 0.5}], max_new_tokens=4, do_sample=False
    )
    for row, weights in enumerate(({"a": 1.0}, {"b": 0.5})):
        with mixture.fixed(weights):
            alone = mixture.generate(
                input_ids=ids[row : row + 1], max_new_tokens=4, do_sample=False
            )
        assert torch.equal(together[row], alone[0])
    with mixture.fixed({"a": 1.0}), torch.no_grad():
        gated = mixture(input_ids=ids, weights="gates").logits
    with torch.no_grad():
        close(gated, mixture(input_ids=ids).logits)


def test_a_block_that_cannot_reach_a_thread_is_said(experts: Experts) -> None:
    mixture, errors = Case("llama", "prompt").shared(experts), []

    def stream() -> None:
        try:
            mixture.generate(input_ids=tokens(1, 4), max_new_tokens=2)
        except MixtureError as error:
            errors.append(str(error))

    with mixture.fixed({"a": 1.0}):
        thread = threading.Thread(target=stream)
        thread.start()
        thread.join()
    assert "weights={…}" in errors[0]
    thread = threading.Thread(target=stream)
    thread.start()
    thread.join()
    assert len(errors) == 1, "without an open block the gates decide"


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_gates_read_no_continuation_that_a_harness_scores(shape: str, experts: Experts) -> None:
    mixture, ids, target = Case(shape, "prompt").shared(experts), tokens(2, 5), tokens(2, 3, seed=1)
    whole = torch.cat([ids, target], 1)
    with torch.no_grad():
        right = target_logits(mixture, ids, target)
        with mixture.reading(5):
            close(mixture(input_ids=whole).logits[:, 5:], right)
        padding = tokens(2, 2, seed=4)
        mask = torch.cat([torch.zeros_like(padding), torch.ones_like(whole)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with mixture.reading([5, 5]):
            padded = torch.cat([padding, whole], 1)
            found = mixture(input_ids=padded, attention_mask=mask, position_ids=places).logits
        close(found[:, 7:], right)
        with mixture.reading([5, 5, 5]), pytest.raises(MixtureError, match="3 rows"):
            mixture(input_ids=whole)


def test_a_base_is_taken_once_and_plain(experts: Experts) -> None:
    from peft import PeftModel

    folders, ids, target = experts("llama"), tokens(1, 4), tokens(1, 3)
    base = tiny_model("llama")
    first = MixtureModel.from_experts(base, folders)
    with pytest.raises(MixtureError, match="already part of a mixture"):
        MixtureModel.from_experts(base, folders)
    with first.fixed({"a": 1.0}):  # still whole
        close(target_logits(first, ids, target), peft_logits("llama", folders["a"], ids, target))
    wrapped = PeftModel.from_pretrained(tiny_model("llama"), folders["b"])
    with pytest.raises(MixtureError, match=r"unload\(\)"):
        MixtureModel.from_experts(wrapped, folders)
    injected = wrapped.get_base_model()
    with pytest.raises(MixtureError, match="adapter of PEFT"):
        MixtureModel.from_experts(injected, folders)
    mixture = MixtureModel.from_experts(wrapped.unload(), folders)
    with mixture.fixed({"a": 1.0}):
        close(target_logits(mixture, ids, target), peft_logits("llama", folders["a"], ids, target))


def test_a_base_is_left_as_it_was_when_no_mixture_comes_of_it(
    make_expert, experts: Experts
) -> None:
    wide = make_expert("llama", "wide", seed=5, r=8)
    base = tiny_model("llama")
    with pytest.raises(MixtureError, match="equal ranks"):
        MixtureModel.from_experts(
            base, {**experts("llama"), "wide": wide}, gate=GateConfig(mixing="parameter")
        )
    ids = tokens(1, 4)
    assert torch.equal(base(input_ids=ids).logits, tiny_model("llama")(input_ids=ids).logits)
    assert all(parameter.requires_grad for parameter in base.parameters())
    MixtureModel.from_experts(base, experts("llama"))
