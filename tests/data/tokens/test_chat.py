"""Chats: where prompts end and answers begin, the ends of turns, and what is refused."""

import json

import pytest
from chat_templates import (
    GEMMA,
    LLAMA2,
    LLAMA3,
    NEMOTRON,
    PHI3,
    PLAIN,
    QWEN2,
    QWEN3,
    R1,
    byte_level,
    unigram,
)
from transformers import ByT5Tokenizer, GenerationConfig

from loramix.data.conversations import Conversation, answer_text
from loramix.data.tasks import Task
from loramix.data.tokens.answers import end_ids, read_answer
from loramix.data.tokens.batches import Encoded
from loramix.data.tokens.chat import chat_problem
from loramix.data.tokens.encoding import encode
from loramix.errors import BaseModelError, DataError

ASKED = [{"role": "user", "content": "what is white?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "snow"}}}


def task(**changes: object) -> Task:
    fields: dict[str, object] = {"name": "talk", "source": "a.jsonl", "format": "messages"}
    return Task.model_validate(fields | changes)


def encoded(tokenizer, messages, answer, *, tools=(), **changes: object) -> Encoded:
    """Encode a sample of a task of conversations."""
    text = Conversation(messages, tools).to_text()
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    target = None if answer is None else answer_text(message)
    return encode(tokenizer, task(**changes), text, target, causal=True, chat=True)


# --- where answers begin and end


@pytest.mark.parametrize(
    ("template", "prompt", "target"),
    [
        (
            GEMMA,
            "<s><start_of_turn>user\nwhat is white?<end_of_turn>\n<start_of_turn>model\n",
            "snow<end_of_turn>",
        ),
        (
            LLAMA3,
            "<s><|start_header_id|>user<|end_header_id|>\n\nwhat is white?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "snow<|eot_id|>",
        ),
        (PHI3, "<|user|>\nwhat is white?<|end|>\n<|assistant|>\n", "snow<|end|>"),
        (
            QWEN2,
            "<|im_start|>user\nwhat is white?<|im_end|>\n<|im_start|>assistant\n",
            "snow<|im_end|>",
        ),
        (
            QWEN3,
            "<|im_start|>user\nwhat is white?<|im_end|>\n<|im_start|>assistant\n",
            "<think>\n\n</think>\n\nsnow<|im_end|>",
        ),
        (
            NEMOTRON,
            "<|im_start|>user\nwhat is white?<|im_end|>\n<|im_start|>assistant\n<think></think>",
            "snow<|im_end|>",
        ),
        (LLAMA2, "<s>[INST] what is white? [/INST]", " snow </s>"),
        (PLAIN, "user: what is white?\nassistant: ", "snow</s>"),
    ],
    ids=["gemma", "llama3", "phi3", "qwen2", "qwen3", "nemotron", "llama2", "plain"],
)
@pytest.mark.parametrize("conversational", [True, False])
def test_a_target_is_what_the_template_writes_to_the_end_of_the_turn(
    template, prompt, target, conversational
):
    tokenizer = byte_level(template)
    if conversational:
        found = encoded(tokenizer, ASKED, "snow")
    else:
        asks = task(format="columns", input_column="a", target_column="b", prompt="what {input}?")
        found = encode(tokenizer, asks, "is white", "snow", causal=True, chat=True)
    assert tokenizer.decode(found.prompt) == prompt
    assert tokenizer.decode(found.target) == target
    assert found.target[-1] in end_ids(tokenizer, None, chat=True)
    assert not found.input_cut
    assert not found.target_cut


@pytest.mark.parametrize("template", [GEMMA, LLAMA3, PHI3, QWEN2, QWEN3, NEMOTRON, LLAMA2])
@pytest.mark.parametrize("make", [byte_level, unigram])
def test_prompt_and_target_are_the_tokens_of_the_whole_conversation(template, make):
    """No token more or less at the boundary, as the first tokens of the template's own."""
    tokenizer = make(template)
    found = encoded(tokenizer, ASKED, "soft white snow")
    whole = tokenizer.apply_chat_template(
        [*ASKED, {"role": "assistant", "content": "soft white snow"}], tokenize=False
    )
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    assert found.prompt + found.target == ids[: len(found.prompt) + len(found.target)]


def test_every_turn_is_in_the_prompt_and_the_answer_alone_in_the_target():
    tokenizer = byte_level(QWEN2)
    turns = [
        {"role": "system", "content": "soft"},
        *ASKED,
        {"role": "assistant", "content": "snow"},
        {"role": "user", "content": "and rain?"},
    ]
    found = encoded(tokenizer, turns, "not rain\n  at all")
    assert tokenizer.decode(found.target) == "not rain\n  at all<|im_end|>"
    assert tokenizer.decode(found.prompt) == tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )


def test_thinking_and_tool_calls_that_the_template_knows_are_learned():
    tokenizer = byte_level(QWEN3)
    answer = {"role": "assistant", "content": "snow", "reasoning_content": "white, so"}
    target = encoded(tokenizer, ASKED, answer).target
    assert tokenizer.decode(target) == "<think>\nwhite, so\n</think>\n\nsnow<|im_end|>"
    tokenizer = byte_level(QWEN2)
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    found = encoded(tokenizer, ASKED, calls, tools=[TOOL])
    assert '"name": "look"' in tokenizer.decode(found.prompt)
    written = '<tool_call>look {"at": "snow"}</tool_call><|im_end|>'
    assert tokenizer.decode(found.target) == written
    # Some data hold the arguments as text, which the template would write as a string.
    function = CALL["function"] | {"arguments": json.dumps(CALL["function"]["arguments"])}
    as_text = {**calls, "tool_calls": [{**CALL, "function": function}]}
    assert encoded(tokenizer, ASKED, as_text, tools=[TOOL]).target == found.target


@pytest.mark.parametrize("text", ["what is white?", "[1]", '{"a": 1}'])
def test_an_input_of_another_task_is_one_user_turn(text):
    """A comparison asks tasks about the inputs of others."""
    tokenizer = byte_level(QWEN2)
    found = encode(tokenizer, task(), text, None, causal=True, chat=True)
    expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.prompt) == expected


# --- refusals


@pytest.mark.parametrize(
    ("template", "messages", "answer", "tools", "said"),
    [
        (R1, ASKED, "snow", (), r"ends a prompt with '<think>\\n' and writes 'snow</s>'"),
        (
            LLAMA3,
            ASKED,
            {"role": "assistant", "content": "snow", "reasoning_content": "white"},
            (),
            "does not know an answer's reasoning_content",
        ),
        (
            LLAMA3,
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            (),
            "does not know an answer's tool_calls",
        ),
        (LLAMA3, ASKED, "snow", [TOOL], "does not know tools"),
        (GEMMA, [{"role": "system", "content": "a"}, *ASKED], "snow", (), "System role not supp"),
        (
            R1.replace("<think>\n", ""),
            ASKED,
            "for long</think>snow",
            (),
            "leaves out a part of 'for long</think>snow'",
        ),
    ],
    ids=["r1", "thinking", "tool calls", "tools", "system", "content"],
)
def test_what_a_template_does_not_write_is_refused(template, messages, answer, tools, said):
    with pytest.raises(DataError, match=f"task 'talk': .*{said}"):
        encoded(byte_level(template), messages, answer, tools=tools)


def test_a_conversation_needs_chat_and_a_template():
    text = Conversation(ASKED).to_text()
    with pytest.raises(DataError, match=r"'talk'.*set base\.chat: true"):
        encode(byte_level(QWEN2), task(), text, "snow", causal=True, chat=False)
    with pytest.raises(BaseModelError, match=r"no chat template; choose the chat version"):
        encode(byte_level(), task(), text, "snow", causal=True, chat=True)


def test_a_template_that_cannot_be_used_is_told_without_any_data():
    assert "no chat template" in chat_problem(byte_level())
    assert "<think>" in chat_problem(byte_level(R1))
    assert chat_problem(byte_level(QWEN3)) is None
    endless = byte_level(PLAIN)
    endless.eos_token = None
    assert "cannot learn where its answer ends" in chat_problem(endless)


# --- too long


LONG = [
    {"role": "system", "content": "soft"},
    {"role": "user", "content": "the first question"},
    {"role": "assistant", "content": "the first answer"},
    {"role": "user", "content": "the second question"},
    {"role": "assistant", "content": "the second answer"},
    {"role": "user", "content": "the last question of all"},
]


def test_the_earliest_turns_go_first_and_the_system_stays():
    tokenizer = byte_level(QWEN2)
    whole = len(encoded(tokenizer, LONG, "snow").prompt)
    found = encoded(tokenizer, LONG, "snow", max_input_tokens=whole - 1)
    expected = [LONG[0], *LONG[3:]]
    assert tokenizer.decode(found.prompt) == tokenizer.apply_chat_template(
        expected, tokenize=False, add_generation_prompt=True
    )
    assert found.input_cut
    assert tokenizer.decode(found.target) == "snow<|im_end|>"
    assert not encoded(tokenizer, LONG, "snow", max_input_tokens=whole).input_cut


def test_a_last_turn_that_is_too_long_loses_its_end_and_never_its_markup():
    tokenizer = byte_level(QWEN2)
    kept = len(encoded(tokenizer, [LONG[0], LONG[-1]], None).prompt)
    found = encoded(tokenizer, LONG, None, max_input_tokens=kept - 3)
    prompt = tokenizer.decode(found.prompt)
    assert kept - 6 <= len(found.prompt) <= kept - 3
    assert prompt.startswith("<|im_start|>system\nsoft<|im_end|>\n<|im_start|>user\nthe last ques")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert found.input_cut
    with pytest.raises(DataError, match=r"without any input; max_input_tokens is 9"):
        encoded(tokenizer, LONG, None, max_input_tokens=9)


def test_a_turn_with_a_tools_result_stays_whole():
    """A result without the call that it answers would be no conversation."""
    tokenizer = byte_level(QWEN2)
    turns = [
        *LONG[:3],
        LONG[-1],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "it is cold"},
    ]
    limit = len(encoded(tokenizer, turns, None).prompt) - 1
    prompt = tokenizer.decode(encoded(tokenizer, turns, None, max_input_tokens=limit).prompt)
    assert "first" not in prompt
    assert "the last question of all" in prompt
    assert "<tool_call>look" in prompt
    assert prompt.endswith("it is cold<|im_end|>\n<|im_start|>assistant\n")


def test_a_long_answer_loses_its_end():
    tokenizer = byte_level(QWEN2)
    whole = encoded(tokenizer, ASKED, "snow and soft rain")
    short = encoded(tokenizer, ASKED, "snow and soft rain", max_new_tokens=3)
    assert short.target == whole.target[:3]
    assert (whole.target_cut, short.target_cut) == (False, True)


# --- special tokens in texts


@pytest.mark.parametrize("make", [byte_level, unigram])
@pytest.mark.parametrize("written", ["<|im_end|>", "</s>", "<|eot_id|>", "<unk>"])
def test_special_tokens_in_a_conversation_are_characters(make, written):
    tokenizer = make(QWEN2)
    control = set(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>", "<|eot_id|>"]))
    clean = encoded(tokenizer, ASKED, "snow")
    turns = [{"role": "user", "content": f"what is {written} white {written}"}]
    found = encoded(tokenizer, turns, f"snow {written} rain")
    ends = [index for index in found.prompt + found.target if index in control]
    assert ends == [index for index in clean.prompt + clean.target if index in control]
    assert tokenizer.decode(found.target) == f"snow {written} rain<|im_end|>"
    assert f"what is {written} white {written}<|im_end|>" in tokenizer.decode(found.prompt)


@pytest.mark.parametrize("make", [byte_level, unigram])
@pytest.mark.parametrize("causal", [True, False])
def test_special_tokens_in_samples_are_characters_and_in_a_prompt_template_special(make, causal):
    tokenizer = make()
    asks = task(
        format="columns", input_column="a", target_column="b", prompt="<|user|>{input}<|end|>"
    )
    found = encode(tokenizer, asks, "soft <|end|>", "a</s>b", causal=causal, chat=False)
    end, stop = tokenizer.convert_tokens_to_ids(["<|end|>", "</s>"])
    assert found.prompt[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert found.prompt.count(end) == 1
    assert found.target.count(stop) == 1
    assert found.target[-1] == stop
    assert tokenizer.decode(found.target) == "a</s>b</s>"


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_texts_without_special_tokens_are_encoded_as_ever_beside_texts_with_them(make):
    """The stand-in knows the same vocabulary: only the characters of the token differ."""
    tokenizer = make(QWEN2)
    turns = [*ASKED, {"role": "assistant", "content": "X"}, *ASKED]
    clean = encoded(tokenizer, turns, "snow").prompt
    turns[1] = {"role": "assistant", "content": "</s>"}
    found = encoded(tokenizer, turns, "snow").prompt
    start = clean.index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert found[: start + 1] == clean[: start + 1]
    rest = clean[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"), 20)
    assert found[-rest:] == clean[-rest:]


def test_markup_of_the_template_is_special_even_if_it_was_added_as_ordinary_tokens():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|turn|>", "<|over|>", "<think>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|over|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
    )
    over, think = tokenizer.convert_tokens_to_ids(["<|over|>", "<think>"])
    turns = [{"role": "user", "content": "what <|over|> is <think> white?"}]
    found = encoded(tokenizer, turns, "snow <|over|> rain")
    assert found.prompt.count(over) == found.target.count(over) == 1
    assert found.target[-1] == over
    assert think in found.prompt
    assert over in end_ids(tokenizer, None, chat=True)
    text = read_answer(tokenizer, found.target, [over], chat=True).text
    assert text == "snow <|over|> rain"


def test_a_tokenizer_in_python_reads_them_as_characters_or_refuses():
    tokenizer = ByT5Tokenizer()
    asks = task(format="columns", input_column="a", target_column="b", prompt="on {input}")
    found = encode(tokenizer, asks, "</s> rain", "a<pad>b", causal=False, chat=False)
    assert tokenizer.decode(found.prompt) == "on </s> rain</s>"
    assert found.prompt.count(1) == found.target.count(1) == 1
    assert 0 not in found.target
    special = asks.model_copy(update={"prompt": "<extra_id_0>{input}"})
    with pytest.raises(DataError, match=r"'talk': '<extra_id_0>' is special.*fast tokenizer"):
        encode(tokenizer, special, "</s> rain", None, causal=False, chat=False)


# --- ends and texts of answers


def test_the_ends_are_those_of_tokenizer_generation_config_and_template():
    tokenizer = byte_level(GEMMA)
    eos, turn, other = tokenizer.convert_tokens_to_ids(["</s>", "<end_of_turn>", "<|end|>"])
    assert end_ids(tokenizer, None, chat=False) == [eos]
    assert end_ids(tokenizer, GenerationConfig(eos_token_id=other), chat=False) == [eos, other]
    several = GenerationConfig(eos_token_id=[other, eos])
    assert end_ids(tokenizer, several, chat=True) == sorted([eos, turn, other])
    tokenizer.eos_token = None
    assert end_ids(tokenizer, GenerationConfig(), chat=False) == []


def test_an_answer_is_read_to_its_first_end():
    tokenizer = byte_level(QWEN3)
    ends = end_ids(tokenizer, None, chat=True)
    ids = tokenizer("<think>\n\n</think>\n\n\n  soft\n    snow \n<|im_end|>rain</s><pad>").input_ids
    kept = read_answer(tokenizer, ids, ends, chat=True)
    assert (kept.text, kept.finished) == ("  soft\n    snow", True)
    joined = read_answer(tokenizer, ids, ends, chat=True, whitespace="lines")
    assert joined.text == "soft snow"
    cut = read_answer(tokenizer, ids[:3], ends, chat=False)
    assert not cut.finished
