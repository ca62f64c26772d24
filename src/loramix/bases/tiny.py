"""Tiny models with random weights, built in code: the whole program runs on them in seconds."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

_PAD, _END = "<pad>", "</s>"
_SIZE = 258  # two special tokens and every byte


def tiny_model(name: str) -> PreTrainedModel:
    """Return the tiny model of this name, in evaluation mode; the same weights every time."""
    return copy.deepcopy(_made(name))  # in half of the time that initialising another takes


@cache
def _made(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():  # leaves the caller's random numbers alone
        torch.manual_seed(0)
        return TINY[name]().eval()


def tiny_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte: it encodes every text and needs no file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([_PAD, _END, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if name == "tiny-t5":
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {_END}", special_tokens=[(_END, vocabulary[_END])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_PAD,
        eos_token=_END,
        model_max_length=1024,
        split_special_tokens=True,
    )


def save_tiny_encoder(folder: Path) -> None:
    """Write a tiny BERT with random weights, a stand-in for the encoder of BERTScore."""
    config = BertConfig(
        vocab_size=_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer("tiny-t5")
    tokenizer.add_special_tokens({"cls_token": _END, "sep_token": _END})
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=_SIZE,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=1024,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=_SIZE,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            eos_token_id=1,
        )
    )


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "tiny-llama": _llama,
    "tiny-gpt2": _gpt2,
    "tiny-t5": _t5,
}
