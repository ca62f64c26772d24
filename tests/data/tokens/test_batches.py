"""Batches: prompts cut to size, padding, and the loss of every sample, alone and in a batch."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from loramix.data.tasks import Task
from loramix.data.tokens.batches import IGNORED, Collator, Encoded, generation_batch, length_order
from loramix.data.tokens.encoding import encode
from loramix.errors import BaseModelError, DataError

TEXT = "write a haiku about snow falling on the quiet mountain and the river that sleeps under ice"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 300
SAMPLES = [
    ("snow", "white / white / white"),
    ("the quiet mountain", "ice"),
    ("a", "the river sleeps / under the quiet snow / and on the mountain"),
]


def make_tokenizer(
    *, start: bool = False, end: bool = False, **changes: object
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds a start or an end token to every text, or neither."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT] * 9,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if start or end:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{'<s> ' * start}$A{' </s>' * end}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | changes
    return PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def chatty() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(start=True, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def ending() -> PreTrainedTokenizerFast:
    return make_tokenizer(end=True)


def make_task(**changes: object) -> Task:
    fields = {"name": "poem", "source": "a.csv", "input_column": "a", "target_column": "b"}
    return Task.model_validate(fields | {"prompt": "write a haiku about {input}, please"} | changes)


def encode_all(tokenizer, *, causal: bool = True) -> list[Encoded]:
    return [
        encode(tokenizer, make_task(prompt="on {input}"), text, target, causal=causal, chat=False)
        for text, target in SAMPLES
    ]


# --- prompts and targets


def test_a_causal_prompt_ends_in_a_line_break_and_its_target_in_the_end_token(plain):
    encoded = encode(plain, make_task(), "snow", "white", causal=True, chat=False)
    assert plain.decode(encoded.prompt) == "write a haiku about snow, please\n"
    assert plain.decode(encoded.target) == "white</s>"


def test_the_start_token_stands_once_before_the_prompt_and_never_before_the_target():
    tokenizer = make_tokenizer(start=True)
    encoded = encode(tokenizer, make_task(), "snow", "white", causal=True, chat=False)
    assert tokenizer.decode(encoded.prompt) == "<s>write a haiku about snow, please\n"
    assert tokenizer.decode(encoded.target) == "white</s>"


def test_a_causal_prompt_never_carries_an_end_token(ending):
    encoded = encode(ending, make_task(), "snow", "white", causal=True, chat=False)
    assert (
        ending.decode(encoded.prompt + encoded.target)
        == "write a haiku about snow, please\nwhite</s>"
    )


def test_an_encoder_reads_the_tokenizers_own_special_tokens(ending):
    encoded = encode(ending, make_task(), "snow", "white", causal=False, chat=False)
    assert ending.decode(encoded.prompt) == "write a haiku about snow, please</s>"
    assert ending.decode(encoded.target) == "white</s>"


def test_an_encoder_decoder_target_ends_even_if_the_tokenizer_ends_nothing(plain):
    assert (
        encode(plain, make_task(), "snow", "ice", causal=False, chat=False).target[-1]
        == plain.eos_token_id
    )


def test_a_chat_prompt_is_one_user_turn_and_the_target_ends_it(chatty):
    encoded = encode(chatty, make_task(), "snow", "white", causal=True, chat=True)
    expected = (
        "<|im_start|>user\nwrite a haiku about snow, please<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatty.decode(encoded.prompt) == expected  # no second start token
    assert chatty.decode(encoded.target) == "white<|im_end|>"


def test_without_a_target_there_are_no_target_ids(plain):
    assert encode(plain, make_task(), "snow", None, causal=True, chat=False).target == []


def test_a_long_target_loses_its_end_and_the_end_token(plain):
    whole = encode(plain, make_task(), "snow", TEXT, causal=True, chat=False).target
    exact = encode(
        plain, make_task(max_new_tokens=len(whole)), "snow", TEXT, causal=True, chat=False
    ).target
    short = encode(
        plain, make_task(max_new_tokens=len(whole) - 1), "snow", TEXT, causal=True, chat=False
    ).target
    assert exact == whole
    assert short == whole[:-1]
    assert plain.eos_token_id not in short


@pytest.mark.parametrize(
    "text", [TEXT, "雪が降る" * 40, "x" * 200, "é " * 99], ids=["words", "kanji", "one", "accents"]
)
@pytest.mark.parametrize("causal", [True, False])
def test_a_long_prompt_loses_the_end_of_its_input_alone(text, causal, ending):
    for limit in (30, 31, 40):
        encoded = encode(
            ending, make_task(max_input_tokens=limit), text, None, causal=causal, chat=False
        )
        assert (
            limit - 4 <= len(encoded.prompt) <= limit
        )  # a character is up to four of these tokens
        prompt = ending.decode(encoded.prompt)
        assert prompt.endswith(", please\n" if causal else ", please</s>")
        kept = prompt.removeprefix("write a haiku about ").split(", please")[0]
        assert kept
        assert text.startswith(kept)


def test_a_long_chat_prompt_keeps_the_markup(chatty):
    task = make_task(max_input_tokens=60)
    prompt = chatty.decode(encode(chatty, task, TEXT * 9, None, causal=True, chat=True).prompt)
    assert prompt.startswith("<|im_start|>user\nwrite a haiku about write")
    assert prompt.endswith(", please<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_at_the_limit_is_whole(plain):
    whole = encode(plain, make_task(), TEXT, None, causal=True, chat=False).prompt
    assert (
        encode(
            plain, make_task(max_input_tokens=len(whole)), TEXT, None, causal=True, chat=False
        ).prompt
        == whole
    )


def test_a_template_above_the_limit_is_an_error(plain):
    with pytest.raises(DataError, match=r"'poem'.*without any input; max_input_tokens is 3"):
        encode(plain, make_task(max_input_tokens=3), "snow", None, causal=True, chat=False)


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = make_tokenizer(eos_token=None, pad_token=None)
    with pytest.raises(BaseModelError, match="no end token"):
        encode(tokenizer, make_task(), "snow", "white", causal=True, chat=False)
    with pytest.raises(BaseModelError, match="neither a padding nor an end token"):
        Collator(tokenizer, causal=True)


# --- padding


def test_causal_batches_share_one_boundary(plain):
    batch = Collator(plain, causal=True)(
        [Encoded([10, 11, 12], [20, 2]), Encoded([13], [21, 22, 2])]
    )
    lists = {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    assert lists == {
        "input_ids": [[10, 11, 12, 20, 2, 0], [0, 0, 13, 21, 22, 2]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 3, 4, 4], [0, 0, 0, 1, 2, 3]],
        "labels": [[IGNORED, 20, 2, IGNORED], [IGNORED, 21, 22, 2]],
        "logits_to_keep": 4,
    }


def test_encoder_decoder_batches_are_padded_on_the_right(plain):
    batch = Collator(plain, causal=False)([Encoded([10, 11], [20, 2]), Encoded([13], [21, 22, 2])])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[10, 11], [13, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [[20, 2, IGNORED], [21, 22, 2]],
    }


def test_generation_starts_where_no_padding_is(plain):
    encoded = [Encoded([10, 11], []), Encoded([13], [])]
    causal = generation_batch(plain, encoded, causal=True)
    assert causal["input_ids"].tolist() == [[10, 11], [0, 13]]
    assert causal["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert generation_batch(plain, encoded, causal=False)["attention_mask"].tolist() == [
        [1, 1],
        [1, 0],
    ]


def test_the_end_token_pads_where_there_is_no_padding_token_and_is_masked():
    batch = Collator(make_tokenizer(pad_token=None), causal=True)(
        [Encoded([10], [2]), Encoded([11, 12], [21, 2])]
    )
    assert batch["input_ids"].tolist() == [[2, 10, 2, 2], [11, 12, 21, 2]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 21, 2]]


def test_a_training_batch_without_a_target_is_refused(plain):
    with pytest.raises(DataError, match="needs a target"):
        Collator(plain, causal=True)([Encoded([10], [20]), Encoded([11], [])])


def test_the_longest_comes_first():
    assert length_order([2, 5, 1, 5]) == [1, 3, 0, 2]


# --- the loss


def make_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def make_gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.4,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def make_t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            initializer_factor=3.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def alone(model, sample: Encoded) -> torch.Tensor:
    """The ordinary loss of one sample: no padding, labels for every column, all logits."""
    whole = torch.tensor([sample.prompt + sample.target])
    labels = torch.tensor([[IGNORED] * len(sample.prompt) + sample.target])
    return model(input_ids=whole, labels=labels).loss


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_a_causal_batch_has_the_loss_of_its_samples_weighted_by_their_target_tokens(make, plain):
    torch.manual_seed(0)
    model, samples = make().eval(), encode_all(plain)
    assert (
        len({len(sample.prompt) for sample in samples})
        == len({len(sample.target) for sample in samples})
        == 3
    )
    losses = torch.stack([alone(model, sample) for sample in samples])
    sizes = torch.tensor([float(len(sample.target)) for sample in samples])
    assert losses.std() > 0.05  # samples that differ: a wrong weighting shows
    out = model(**Collator(plain, causal=True)(samples))
    torch.testing.assert_close(out.loss, (losses * sizes).sum() / sizes.sum(), rtol=1e-5, atol=1e-5)
    assert out.logits.shape[:2] == (3, max(len(sample.target) for sample in samples) + 1)


@torch.no_grad()
@pytest.mark.parametrize("accepted", [["position_ids"], []])
def test_a_model_that_takes_fewer_inputs_gets_the_same_loss_from_all_columns(accepted, plain):
    torch.manual_seed(0)
    model, samples = make_llama().eval(), encode_all(plain)
    batch = Collator(plain, causal=True, accepted=accepted)(samples)
    assert set(batch) == {"input_ids", "attention_mask", "labels", *accepted}
    assert batch["labels"].shape == batch["input_ids"].shape
    whole = model(**Collator(plain, causal=True)(samples)).loss
    torch.testing.assert_close(
        model(**batch).loss, whole, rtol=1e-5, atol=1e-5
    )  # Llama's positions are relative


@torch.no_grad()
def test_an_encoder_decoder_batch_has_the_loss_of_its_samples_weighted_by_their_target_tokens(
    ending,
):
    torch.manual_seed(0)
    model, samples = make_t5().eval(), encode_all(ending, causal=False)
    losses = torch.stack(
        [
            model(
                input_ids=torch.tensor([sample.prompt]), labels=torch.tensor([sample.target])
            ).loss
            for sample in samples
        ]
    )
    sizes = torch.tensor([float(len(sample.target)) for sample in samples])
    assert losses.std() > 0.05
    loss = model(**Collator(ending, causal=False)(samples)).loss
    torch.testing.assert_close(loss, (losses * sizes).sum() / sizes.sum(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_t5])
def test_generation_in_a_batch_is_generation_alone(make, plain, ending):
    torch.manual_seed(0)
    causal = make is not make_t5
    tokenizer = plain if causal else ending
    model, samples = make().eval(), encode_all(tokenizer, causal=causal)

    def generate(some: list[Encoded]) -> list[list[int]]:
        batch = generation_batch(tokenizer, some, causal=causal)
        options = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        return model.generate(**batch, **options)[:, -8:].tolist()

    assert generate(samples) == [generate([sample])[0] for sample in samples]
