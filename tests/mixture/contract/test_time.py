"""C3 and C4: a token depends on nothing after it, and cached generation is the function that
training sees.
"""

import copy

import pytest
import torch
from cases import ALL, GENERATING, Case, Experts, over
from conftest import close, target_logits, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import BaseModelOutput

from loramix import MixtureModel
from loramix.errors import MixtureError

PROMPT, TARGET = 6, 5


def empty_cache(
    mixture: MixtureModel, kind: str
) -> DynamicCache | StaticCache | EncoderDecoderCache:
    """Return an empty cache; static ones have room to spare."""

    def one(length: int) -> DynamicCache | StaticCache:
        config = mixture.config.get_text_config(decoder=True)
        return (
            DynamicCache(config=config)
            if kind == "dynamic"
            else StaticCache(config=config, max_cache_len=length)
        )

    return (
        EncoderDecoderCache(one(16), one(PROMPT)) if mixture.config.is_encoder_decoder else one(16)
    )


@torch.no_grad()
def stepwise(
    mixture: MixtureModel, ids: torch.Tensor, target: torch.Tensor, steps: list[int], cache: object
):
    """Return the logits at the target's places, computed `steps` tokens at a time.

    Prompt gates get the whole prompt first; for other gates of causal models the steps cut the
    prompt as well.
    """
    seq2seq = mixture.config.is_encoder_decoder
    given = {"encoder_outputs": mixture.base.get_encoder()(input_ids=ids)} if seq2seq else {}
    stream, key, first = (
        (target, "decoder_input_ids", [])
        if seq2seq
        else (torch.cat([ids, target], 1), "input_ids", [])
    )
    if not seq2seq and mixture.gate_config.context == "prompt":
        first = [PROMPT]
    logits, start = [], 0
    while start < stream.shape[1]:
        size = first.pop() if first else steps[len(logits) % len(steps)]
        piece = stream[:, start : start + size]
        output = mixture(**given, **{key: piece}, past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, start + size
        logits.append(output.logits)
    return torch.cat(logits, 1)[:, -target.shape[1] :]


@over(GENERATING)
def test_c3_future_targets_change_nothing(case: Case, experts: Experts) -> None:
    mixture, ids, target = case.build(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    other = torch.cat([target[:, :2], tokens(2, TARGET - 2, seed=9)], 1)
    close(target_logits(mixture, ids, target)[:, :2], target_logits(mixture, ids, other)[:, :2])


@over(GENERATING)
def test_c4_cached_steps_equal_one_pass(case: Case, experts: Experts) -> None:
    mixture = case.build(experts)

    @settings(max_examples=4, deadline=None, derandomize=True, database=None)
    @given(
        steps=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        kind=st.sampled_from(["dynamic", "static"]),
    )
    def check(steps: list[int], kind: str) -> None:
        ids, target = tokens(2, PROMPT), tokens(2, TARGET, seed=1)
        cached = stepwise(mixture, ids, target, steps, empty_cache(mixture, kind))
        close(cached, target_logits(mixture, ids, target))

    check()


@over(GENERATING)
@pytest.mark.parametrize("beams", [1, 3])
def test_c4_generation_is_the_function_that_scores(
    case: Case, experts: Experts, beams: int
) -> None:
    mixture, rows = case.build(experts), [tokens(1, length, seed=length) for length in (6, 4)]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    gap = torch.zeros(1, 2, dtype=torch.long)
    short = torch.cat([rows[1], gap] if case.shape == "t5" else [gap, rows[1]], 1)
    batch = torch.cat([rows[0], short])
    together = mixture.generate(input_ids=batch, attention_mask=(batch > 0).long(), **settings)
    uncached = mixture.generate(
        input_ids=batch, attention_mask=(batch > 0).long(), use_cache=False, **settings
    )
    assert torch.equal(together.sequences, uncached.sequences)
    close(torch.stack(together.scores), torch.stack(uncached.scores))
    for index, row in enumerate(rows):
        alone = mixture.generate(input_ids=row, fold=case.context == "prompt", **settings)
        assert torch.equal(alone.sequences[0, -5:], together.sequences[index, -5:])
        if beams == 1:
            answer = alone.sequences[:, -5:]
            before = row if case.shape != "t5" else alone.sequences[:, :1]
            target = torch.cat([before[:, -1:], answer[:, :-1]], 1)
            scored = (
                target_logits(mixture, row if case.shape == "t5" else row[:, :-1], target)
                if (case.shape == "t5" or case.context != "prompt")
                else mixture(
                    input_ids=torch.cat([row, answer[:, :-1]], 1),
                    prompt_mask=torch.arange(row.shape[1] + 4)[None] < row.shape[1],
                ).logits[:, -5:]
            )
            possible = (
                torch.stack(alone.scores, 1) > -torch.inf
            )  # the end token is forbidden so early
            close(scored[possible], torch.stack(alone.scores, 1)[possible])


@over(GENERATING)
def test_c4_sampling_with_the_same_noise_gives_the_same_text(case: Case, experts: Experts) -> None:
    mixture, ids = case.build(experts), tokens(2, PROMPT)
    answers = []
    for caching in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
        torch.manual_seed(5)
        answers.append(
            mixture.generate(
                input_ids=ids, do_sample=True, max_new_tokens=6, temperature=1.5, **caching
            )
        )
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@over([case for case in GENERATING if case.shape != "t5" and case.context != "prompt"])
def test_c4_a_chunked_prefill_changes_nothing(case: Case, experts: Experts) -> None:
    mixture, ids = case.build(experts), tokens(2, PROMPT)
    plain = mixture.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        plain,
        mixture.generate(input_ids=ids, max_new_tokens=4, do_sample=False, prefill_chunk_size=2),
    )


@over([case for case in ALL if case.shape == "t5"])
def test_c4_encoder_outputs_of_the_user_are_those_that_gates_read(
    case: Case, experts: Experts
) -> None:
    mixture, ids, target = case.build(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    with torch.no_grad():
        hidden = mixture.base.get_encoder()(input_ids=ids).last_hidden_state
        plain = mixture(input_ids=ids, decoder_input_ids=target).logits
        close(
            plain, mixture(encoder_outputs=BaseModelOutput(hidden), decoder_input_ids=target).logits
        )
        swapped = mixture(
            encoder_outputs=BaseModelOutput(hidden.flip(0)), decoder_input_ids=target.flip(0)
        ).logits
        close(plain.flip(0), swapped)
        decided = mixture.weights(encoder_outputs=BaseModelOutput(hidden), decoder_input_ids=target)
    assert list(decided) == [name for name in mixture.layers if name.startswith("decoder.")]
    with pytest.raises(MixtureError, match="need decoder_input_ids too"):
        mixture.weights(encoder_outputs=BaseModelOutput(hidden))


@over([case for case in GENERATING if case.activation == "softmax" and case.mixing == "output"])
def test_c4_what_a_cache_carries_follows_its_rows(case: Case, experts: Experts) -> None:
    """Reordering, repeating, selecting and copying rows mid-way equals computing the rows so
    arranged.
    """
    mixture, ids, target = case.build(experts), tokens(2, PROMPT), tokens(2, TARGET, seed=1)
    encoded = mixture.base.get_encoder()(input_ids=ids) if case.shape == "t5" else None

    @torch.no_grad()
    def run(piece: torch.Tensor, cache: object, order: torch.Tensor):
        if encoded is None:
            return mixture(input_ids=piece, past_key_values=cache, use_cache=True)
        outputs = BaseModelOutput(encoded.last_hidden_state[order])
        return mixture(
            encoder_outputs=outputs, decoder_input_ids=piece, past_key_values=cache, use_cache=True
        )

    straight = torch.arange(2)
    first = target[:, :2] if case.shape == "t5" else torch.cat([ids, target[:, :2]], 1)
    prefilled = first if case.shape == "t5" or case.context != "prompt" else ids
    cache = run(prefilled, None, straight).past_key_values
    if prefilled is ids:
        run(target[:, :2], cache, straight)
    rest, changes = (
        target[:, 2:],
        {
            "reorder": (
                lambda held: held.reorder_cache(torch.tensor([1, 0])),
                torch.tensor([1, 0]),
            ),
            "repeat": (lambda held: held.batch_repeat_interleave(2), torch.tensor([0, 0, 1, 1])),
            "select": (
                lambda held: held.batch_select_indices(torch.tensor([1])),
                torch.tensor([1]),
            ),
            "copy": (lambda held: None, straight),
        },
    )
    plain = run(rest, copy.deepcopy(cache), straight).logits
    for change, order in changes.values():
        held = copy.deepcopy(cache)
        change(held)
        close(run(rest[order], held, order).logits, plain[order])


@pytest.mark.parametrize("shape", ["llama", "gpt2"])  # prompt lookup needs a decoder-only model
@pytest.mark.parametrize("context", ["prompt", "token"])
def test_assisted_generation_gives_the_same_text(
    shape: str, context: str, experts: Experts
) -> None:
    mixture, ids = Case(shape, context).build(experts), tokens(1, 4).repeat(1, 3)
    plain = mixture.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(
        plain,
        mixture.generate(
            input_ids=ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3
        ),
    )
