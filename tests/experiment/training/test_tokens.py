"""Training samples as token ids: some without a prompt, and all encoded once."""

from dataclasses import replace
from pathlib import Path

import pytest

from loramix.bases.tiny import tiny_tokenizer
from loramix.data.samples import Sample
from loramix.data.tokens.batches import Encoded
from loramix.data.tokens.encoding import encode
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe
from loramix.experiment.training import tokens
from loramix.experiment.training.tokens import encode_samples


def haikus(count: int) -> list[Sample]:
    return [
        Sample("haiku", f"{number:016x}", "train", f"snow and fog, {number}", "a / b / c")
        for number in range(count)
    ]


def encoded(
    samples: list[Sample], cache: Path, *, bare: float = 0.0, recipe: Recipe | None = None
) -> list[Encoded]:
    recipe = recipe or load_recipe("tiny")
    tokenizer, tasks = tiny_tokenizer("tiny-llama"), recipe.tasks[:1]
    data = encode_samples([samples], tokenizer, recipe, tasks, causal=True, bare=bare, cache=cache)
    return [data[index] for index in range(len(data))]


def test_bare_training_prompts_are_the_input_alone(tmp_path: Path) -> None:
    samples, task = haikus(200), load_recipe("tiny").tasks[0]
    inputs = [sample.input for sample in samples]

    def prompts(bare: float) -> list[str]:
        tokenizer, data = tiny_tokenizer("tiny-llama"), encoded(samples, tmp_path, bare=bare)
        return [tokenizer.decode(each.prompt).strip() for each in data]

    assert prompts(0.0) == [task.render(text) for text in inputs]
    assert prompts(1.0) == inputs
    half, more = set(prompts(0.5)) & set(inputs), set(prompts(0.7)) & set(inputs)
    assert 70 <= len(half) <= 130
    assert half < more, "the same samples are bare, and more of them"
    assert set(prompts(0.5)) & set(inputs) == half


def test_samples_are_encoded_once_and_read_from_arrow_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, asked = haikus(9), []

    def counted(*args: object, **kwargs: object) -> Encoded:
        asked.append(args)
        return encode(*args, **kwargs)

    first = encoded(samples, tmp_path)
    assert [each.task for each in first] == [0] * 9
    monkeypatch.setattr(tokens, "encode", counted)
    assert encoded(samples, tmp_path) == first
    assert not asked
    encoded(samples, tmp_path, bare=1.0)
    assert len(asked) == 9
    shorter = load_recipe("tiny", ["tasks.haiku.max_new_tokens=3"])
    encoded(samples, tmp_path, recipe=shorter)
    assert len(asked) == 18
    samples[0] = replace(samples[0], target="other")
    assert encoded(samples, tmp_path)[1:] == first[1:]
    assert len(asked) == 27


def test_another_end_token_or_format_is_another_encoding(tmp_path: Path) -> None:
    recipe, samples = load_recipe("tiny"), haikus(3)
    tokenizer, tasks = tiny_tokenizer("tiny-llama"), recipe.tasks[:1]
    asked = {"causal": True, "bare": 0.0, "cache": tmp_path}
    first = encode_samples([samples], tokenizer, recipe, tasks, **asked)
    tokenizer.eos_token = "<pad>"
    second = encode_samples([samples], tokenizer, recipe, tasks, **asked)
    assert [first[0].target[-1], second[0].target[-1]] == [1, 0]
    assert len(list(tmp_path.iterdir())) == 2
    tasks = [tasks[0].model_copy(update={"format": "prompt-completion"})]
    encode_samples([samples], tokenizer, recipe, tasks, **asked)
    assert len(list(tmp_path.iterdir())) == 3
