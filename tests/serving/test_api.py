"""The API, asked by OpenAI's own client."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from running import Running, running, tiny_mixture

from loramix.mixture.explanation import explain

if TYPE_CHECKING:  # it takes two seconds to import
    from openai import OpenAI


@pytest.fixture(scope="module")
def server(make_adapter: Callable[..., Path]) -> Iterator[Running]:
    with running(tiny_mixture(make_adapter), new_tokens=64, prompt_tokens=128) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Running) -> "OpenAI":
    from openai import OpenAI

    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def asked(server: Running, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
    """Return the status and the JSON that plain HTTP gets."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(server.url + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_completion_is_what_the_mixture_generates(client: "OpenAI", server: Running) -> None:
    prompts = ["a river", "the old bridge over it"]
    answer = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=12, temperature=0, logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        text, number = server.alone(prompt, 12)
        assert choice.text == text
        assert len(choice.logprobs.token_logprobs) == number
        assert choice.finish_reason == ("length" if number == 12 else "stop")
        assert all(choice.logprobs.top_logprobs)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    means = server.mixture.mean_weights(**server.mixture.text_inputs(prompts[0]))
    used = answer.choices[0].model_extra["loramix"]["weights"]
    expected = torch.stack(list(means.values())).mean((0, 1)).tolist()
    assert list(used.values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "weights", "given"),
    [
        ("tiny:a", None, {"a": 1.0}),
        ("tiny:base", None, {}),
        ("tiny", {"a": 0.25, "b": 0.5}, {"a": 0.25, "b": 0.5}),
        ("tiny", {}, {}),
    ],
)
def test_experts_and_weights_by_hand(
    client: "OpenAI", server: Running, model: str, weights: object, given: dict[str, float]
) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        max_completion_tokens=8,
        temperature=0,
        extra_body={"loramix": {"weights": weights, "layers": True}},
    )
    assert answer.choices[0].message.content == server.alone("hello", 8, weights=given)[0]
    told = answer.model_extra["loramix"]
    assert told["weights"] == pytest.approx({"a": 0.0, "b": 0.0, **given})
    assert told["layers"].keys() == server.mixture.layers.keys()


def test_a_stream_says_the_same_and_ends_with_weights_and_usage(
    client: "OpenAI", server: Running
) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [{"type": "text", "text": "a river"}]}],
        max_tokens=16,
        temperature=0,
        n=2,
        logprobs=True,
        top_logprobs=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for index in (0, 1):
        choices = [each for chunk in chunks for each in chunk.choices if each.index == index]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert text == server.alone("a river", 16)[0]
        assert choices[0].delta.role == "assistant"
        assert choices[-1].finish_reason in ("stop", "length")
        scores = [score for each in choices if each.logprobs for score in each.logprobs.content]
        assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)
    ends = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert all(set(chunk.model_extra["loramix"]["weights"]) == {"a", "b"} for chunk in ends)
    assert chunks[-1].usage.completion_tokens == 2 * server.alone("a river", 16)[1]


def test_a_stop_string_ends_an_answer_before_it(client: "OpenAI", server: Running) -> None:
    whole, _ = server.alone("a river", 16)
    stop = whole[4:6]
    for stream in (False, True):
        answer = client.completions.create(
            model="tiny", prompt="a river", max_tokens=16, temperature=0, stop=stop, stream=stream
        )
        chunks = list(answer) if stream else [answer]
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_what_was_drawn(client: "OpenAI") -> None:
    def drawn(seed: int) -> list[str]:
        answer = client.completions.create(
            model="tiny", prompt="a", max_tokens=12, temperature=1.5, top_p=0.9, seed=seed, n=2
        )
        return [choice.text for choice in answer.choices]

    assert drawn(1) == drawn(1)
    assert len({*drawn(1), *drawn(7)}) == 4


def test_models_and_routing(client: "OpenAI", server: Running) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:base", "tiny:a", "tiny:b"]
    assert client.models.retrieve("tiny:a").id == "tiny:a"
    status, told = asked(server, "/v1/routing", {"prompt": "a river"})
    expected = explain(server.mixture, "a river")
    assert status == 200
    assert told["experts"] == ["a", "b"]
    assert told["layers"] == {name: pytest.approx(each) for name, each in expected.layers.items()}
    assert asked(server, "/health") == (200, {"status": "ok"})
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        page = response.read().decode()
    assert 'loramix_expert_weight_total{expert="a"}' in page


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "tinny"}, 404, "did you mean 'tiny'"),
        ({"max_tokens": 65}, 400, "the limit of this server is 64"),
        ({"prompt": "a" * 200}, 400, "the limit of this server is 128"),
        ({"prompt": [1, 999999]}, 400, "token ids are from 0 to 257"),
        ({"prompt": []}, 400, "no prompt"),
        ({"temperature": 3}, 400, "temperature"),
        ({"echo": True}, 400, "'echo' is not supported"),
        ({"made_up": 1}, 400, "made_up"),
        ({"loramix": {"weights": {"c": 1.0}}}, 400, "no expert 'c'"),
        ({"model": "tiny:a", "loramix": {"weights": {"b": 1.0}}}, 400, "weights of its own"),
        ({"prompt": ["a"] * 17, "n": 16}, 400, "272 answers were asked for at once"),
        ({"seed": 2**64}, 400, "seed"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"loramix": {"weights": {"a": 1e39}}}, 400, "weights.a"),
        ({"loramix": {"task": "haiku"}}, 400, "no prompt for a task 'haiku'"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    client: "OpenAI", server: Running, changed: dict[str, object], status: int, words: str
) -> None:
    body = {"model": "tiny", "prompt": "a", **changed}
    found, answer = asked(server, "/v1/completions", body)
    assert found == status
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert words in answer["error"]["message"]
    from openai import APIStatusError

    with pytest.raises(APIStatusError):
        client.completions.create(**{"model": "tiny", "prompt": "a"}, extra_body=changed)


@pytest.mark.parametrize("place", ["prompt", "model", "stop", "user"])
def test_halves_of_characters_are_refused(server: Running, place: str) -> None:
    status, answer = asked(
        server, "/v1/completions", {"model": "tiny", "prompt": "a", place: "\ud800"}
    )
    assert status == 400
    assert "half of a character" in answer["error"]["message"]


def test_chats_that_the_model_cannot_read_are_refused(server: Running) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for changed, words in (
        ({"messages": turns}, "no chat template"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "function"}]}, "'tools' is not supported"),
        ({"top_logprobs": 2}, "'logprobs': true"),
    ):
        body = {"model": "tiny", "messages": turns[:1], **changed}
        status, answer = asked(server, "/v1/chat/completions", body)
        assert status == 400
        assert words in answer["error"]["message"]
