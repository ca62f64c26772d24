"""C3 and C4: a token depends on nothing after it, and cached generation is the function that
training sees.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from cases import ALL, GENERATING, Case, Experts, over, some_examples
from conftest import close, target_logits, tokens
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.generation.utils import GenerateOutput
from transformers.modeling_outputs import BaseModelOutput

from loramix import MixtureModel
from loramix.errors import MixtureError

PROMPT, TARGET, NEW = 6, 5, 4
Cache = DynamicCache | StaticCache | EncoderDecoderCache


# Computing a target piece by piece


def empty_cache(mixture: MixtureModel, kind: str) -> Cache:
    """Return an empty cache; static ones have room to spare."""
    config = mixture.config.get_text_config(decoder=True)

    def one(length: int) -> DynamicCache | StaticCache:
        if kind == "dynamic":
            return DynamicCache(config=config)
        return StaticCache(config=config, max_cache_len=length)

    if mixture.config.is_encoder_decoder:
        return EncoderDecoderCache(one(16), one(PROMPT))
    return one(16)


def reads_the_prompt_whole(mixture: MixtureModel) -> bool:
    return not mixture.config.is_encoder_decoder and mixture.gate_config.context == "prompt"


@torch.no_grad()
def stepwise(
    mixture: MixtureModel, ids: torch.Tensor, target: torch.Tensor, steps: list[int], cache: Cache
) -> torch.Tensor:
    """Return the logits at the target's places, computed `steps` tokens at a time.

    Prompt gates get the whole prompt first; for other gates of causal models the steps cut the
    prompt as well.
    """
    if mixture.config.is_encoder_decoder:
        encoded = mixture.base.get_encoder()(input_ids=ids)
        given, key, stream = {"encoder_outputs": encoded}, "decoder_input_ids", target
    else:
        given, key, stream = {}, "input_ids", torch.cat([ids, target], 1)
    logits, start = [], 0
    while start < stream.shape[1]:
        size = steps[len(logits) % len(steps)]
        if start == 0 and reads_the_prompt_whole(mixture):
            size = PROMPT
        piece = {key: stream[:, start : start + size]}
        output = mixture(**given, **piece, past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, start + size
        logits.append(output.logits)
    return torch.cat(logits, 1)[:, -target.shape[1] :]


@over(GENERATING)
def test_c3_future_targets_change_nothing(case: Case, experts: Experts) -> None:
    mixture, ids, target = case.shared(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    other = torch.cat([target[:, :2], tokens(2, TARGET - 2, seed=9)], 1)
    close(target_logits(mixture, ids, target)[:, :2], target_logits(mixture, ids, other)[:, :2])


@over(GENERATING)
def test_c4_cached_steps_equal_one_pass(case: Case, experts: Experts) -> None:
    mixture, ids, target = case.shared(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    whole = target_logits(mixture, ids, target)

    @some_examples
    @given(
        steps=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        kind=st.sampled_from(["dynamic", "static"]),
    )
    def check(steps: list[int], kind: str) -> None:
        close(stepwise(mixture, ids, target, steps, empty_cache(mixture, kind)), whole)

    check()


# Generation


def generate(mixture: MixtureModel, ids: torch.Tensor, **settings: object) -> GenerateOutput:
    """Generate a few tokens with their scores, greedily unless the settings say otherwise."""
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    asked = {**length, "return_dict_in_generate": True, "output_scores": True, **settings}
    return mixture.generate(input_ids=ids, **asked)


def prompts_of_two_lengths() -> list[torch.Tensor]:
    return [tokens(1, 6, seed=6), tokens(1, 4, seed=4)]


def padded(case: Case, prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return prompts of one row each as one batch, padded where generation does not start."""
    width = max(prompt.shape[1] for prompt in prompts)
    rows = []
    for prompt in prompts:
        gap = torch.zeros(1, width - prompt.shape[1], dtype=torch.long)
        rows.append(torch.cat([prompt, gap] if case.shape == "t5" else [gap, prompt], 1))
    ids = torch.cat(rows)
    return {"ids": ids, "attention_mask": (ids > 0).long()}


@over(GENERATING)
@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_c4_a_row_generates_alone_what_it_generates_in_a_batch(
    case: Case, experts: Experts, beams: int
) -> None:
    mixture, prompts = case.shared(experts), prompts_of_two_lengths()
    together = generate(mixture, **padded(case, prompts), num_beams=beams).sequences
    for prompt, row in zip(prompts, together, strict=True):
        alone = generate(mixture, prompt, num_beams=beams, fold=case.context == "prompt")
        assert torch.equal(alone.sequences[0, -NEW:], row[-NEW:])


@over(GENERATING)
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_c4_generation_needs_no_cache(case: Case, experts: Experts, beams: int) -> None:
    mixture, batch = case.shared(experts), padded(case, prompts_of_two_lengths())
    cached, uncached = (
        generate(mixture, **batch, num_beams=beams, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    close(torch.stack(cached.scores), torch.stack(uncached.scores))


@pytest.mark.axes(True)
@over(GENERATING)
def test_c4_generation_scores_are_those_of_one_pass(case: Case, experts: Experts) -> None:
    mixture, prompt = case.shared(experts), tokens(1, PROMPT)
    found = generate(mixture, prompt)
    scores, answer = torch.stack(found.scores, 1), found.sequences[:, -NEW:]
    if case.shape == "t5":
        read = torch.cat([found.sequences[:, :1], answer[:, :-1]], 1)  # the start token first
        whole = mixture(input_ids=prompt, decoder_input_ids=read)
    else:
        read = torch.cat([prompt, answer[:, :-1]], 1)
        prompt_mask = torch.arange(read.shape[1])[None] < PROMPT
        whole = mixture(input_ids=read, prompt_mask=prompt_mask)
    possible = scores > -torch.inf  # the end token is forbidden so early
    close(whole.logits[:, -NEW:][possible], scores[possible])


@over(GENERATING)
def test_c4_sampling_with_the_same_noise_gives_the_same_text(case: Case, experts: Experts) -> None:
    mixture, ids = case.shared(experts), tokens(2, PROMPT)

    def sampled(**caching: object) -> torch.Tensor:
        torch.manual_seed(5)
        return generate(mixture, ids, do_sample=True, temperature=1.5, **caching).sequences

    cached = sampled()
    assert torch.equal(sampled(use_cache=False), cached)
    assert torch.equal(sampled(cache_implementation="static"), cached)


@over([case for case in GENERATING if case.shape != "t5" and case.context != "prompt"])
def test_c4_a_chunked_prefill_changes_nothing(case: Case, experts: Experts) -> None:
    mixture, ids = case.shared(experts), tokens(2, PROMPT)
    chunked = generate(mixture, ids, prefill_chunk_size=2)
    assert torch.equal(chunked.sequences, generate(mixture, ids).sequences)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])  # prompt lookup needs a decoder-only model
@pytest.mark.parametrize("context", ["prompt", "token"])
def test_assisted_generation_gives_the_same_text(
    shape: str, context: str, experts: Experts
) -> None:
    mixture, ids = Case(shape, context).shared(experts), tokens(1, 4).repeat(1, 3)
    settings = {"input_ids": ids, "max_new_tokens": 8, "do_sample": False}
    assisted = mixture.generate(**settings, prompt_lookup_num_tokens=3)
    assert torch.equal(assisted, mixture.generate(**settings))


# An encoder's outputs


@over([case for case in ALL if case.shape == "t5"])
def test_c4_encoder_outputs_of_the_user_are_those_that_gates_read(
    case: Case, experts: Experts
) -> None:
    mixture, ids, target = case.shared(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    with torch.no_grad():
        hidden = mixture.base.get_encoder()(input_ids=ids).last_hidden_state
        plain = mixture(input_ids=ids, decoder_input_ids=target).logits
        given, swapped = (
            mixture(encoder_outputs=BaseModelOutput(outputs), decoder_input_ids=asked).logits
            for outputs, asked in ((hidden, target), (hidden.flip(0), target.flip(0)))
        )
    close(given, plain)
    close(swapped, plain.flip(0))


@pytest.mark.parametrize("context", ["prompt", "token"])
def test_weights_for_encoder_outputs_are_those_of_the_decoder(
    context: str, experts: Experts
) -> None:
    mixture = Case("t5", context).shared(experts)
    hidden = torch.randn(2, PROMPT, 32, generator=torch.Generator().manual_seed(1))
    outputs = BaseModelOutput(hidden)
    decided = mixture.weights(encoder_outputs=outputs, decoder_input_ids=tokens(2, TARGET))
    assert list(decided) == [name for name in mixture.layers if name.startswith("decoder.")]
    with pytest.raises(MixtureError, match="need decoder_input_ids too"):
        mixture.weights(encoder_outputs=outputs)


# Rows of a cache

CHANGES: dict[str, tuple[Callable[[Cache], object], list[int]]] = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    "copy": (lambda cache: None, [0, 1]),
}


@torch.no_grad()
def prefilled(
    case: Case, mixture: MixtureModel, ids: torch.Tensor, start: torch.Tensor
) -> tuple[Cache, torch.Tensor | None]:
    """Return a cache that holds the prompt and the target's start, and T5's encoder output."""
    if case.shape == "t5":
        encoded = mixture.base.get_encoder()(input_ids=ids)
        output = mixture(encoder_outputs=encoded, decoder_input_ids=start, use_cache=True)
        return output.past_key_values, encoded.last_hidden_state
    cache = mixture(input_ids=ids, use_cache=True).past_key_values
    return mixture(input_ids=start, past_key_values=cache, use_cache=True).past_key_values, None


@over(GENERATING)
def test_c4_what_a_cache_carries_follows_its_rows(case: Case, experts: Experts) -> None:
    """Changing the rows mid-way equals computing the rows so arranged."""
    mixture, ids, target = case.shared(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    cache, hidden = prefilled(case, mixture, ids, target[:, :2])

    @torch.no_grad()
    def rest(held: Cache, order: list[int]) -> torch.Tensor:
        piece, cached = target[order, 2:], {"past_key_values": held, "use_cache": True}
        if hidden is None:
            return mixture(input_ids=piece, **cached).logits
        outputs = BaseModelOutput(hidden[order])
        return mixture(encoder_outputs=outputs, decoder_input_ids=piece, **cached).logits

    plain = rest(copy.deepcopy(cache), [0, 1])
    for change, order in CHANGES.values():
        held = copy.deepcopy(cache)
        change(held)
        close(rest(held, order), plain[order])
