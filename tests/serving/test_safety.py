"""What a server takes on, whom it answers, and how it ends."""

import http.client
import json
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from running import Running, running, tiny_mixture, until

from loramix import MixtureModel

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 1000, "temperature": 0, "loramix": {}}


@pytest.fixture(scope="module")
def mixture(make_adapter: Callable[..., Path]) -> Iterator[MixtureModel]:
    mixture = tiny_mixture(make_adapter)
    mixture.generation_config.suppress_tokens = [1]  # no answer ends before its limit
    return mixture


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: dict

    @property
    def code(self) -> object:
        """What went wrong."""
        return self.body["error"]["code"]

    @property
    def text(self) -> str:
        """What was generated."""
        return self.body["choices"][0]["text"]


@contextmanager
def posting(
    server: Running, body: object, path: str = "/v1/completions", **headers: str
) -> Iterator[http.client.HTTPConnection]:
    """Send a request, and close the connection after the block."""
    address = server.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, data, {"Content-Type": "application/json", **named})
        yield connection


def post(server: Running, body: object, path: str = "/v1/completions", **headers: str) -> Answer:
    """Send a request and return its answer."""
    with posting(server, body, path, **headers) as connection:
        response = connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read() or "{}"))


def test_a_key_is_asked_for(mixture: MixtureModel) -> None:
    with running(mixture, api_key="schlüssel") as server:
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "schl"}):
            answer = post(server, {**LONG, "max_tokens": 1}, **given)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{server.url}/metrics")
        refused.value.close()
        with urllib.request.urlopen(f"{server.url}/health") as health:
            assert health.status == 200
        key = "schlüssel".encode().decode("latin-1")  # as bytes travel in headers
        answer = post(server, {**LONG, "max_tokens": 1}, Authorization=f"Bearer {key}")
        assert answer.status == 200


def test_requests_are_checked_before_they_are_read(mixture: MixtureModel) -> None:
    with running(mixture, body_bytes=1000) as server:
        assert post(server, {**LONG, "prompt": "a" * 1000}).status == 413
        chunked = {"Transfer_Encoding": "chunked"}
        body = (
            b"7d0\r\n"
            + json.dumps({**LONG, "prompt": "a" * 2000}).encode()[:2000]
            + b"\r\n0\r\n\r\n"
        )
        assert post(server, body, **chunked).status == 413
        assert post(server, LONG, Content_Type="text/plain").status == 415
        answer = post(server, b"{not json")
        assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_request_error")
        assert post(server, LONG, "/v1/nothing").status == 404


def test_a_page_cannot_reach_a_server_by_a_name_of_its_own(mixture: MixtureModel) -> None:
    with running(mixture) as server, posting(server, LONG, Host="elsewhere.example") as connection:
        assert connection.getresponse().status == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(mixture: MixtureModel, stream: bool) -> None:
    with running(mixture, rows=1) as server:
        with posting(server, {**LONG, "stream": stream}) as connection:
            assert until(lambda: server.engine.rows == 1)
            connection.sock.shutdown(socket.SHUT_RDWR)
        answer = post(server, {**LONG, "max_tokens": 2})  # takes the only place
        assert answer.text == server.alone("a", 2)[0]
        assert server.idle()


def test_too_many_and_too_slow_are_told_so(mixture: MixtureModel) -> None:
    with running(mixture, rows=1, waiting=1, seconds=0.5) as server, ThreadPoolExecutor() as pool:
        body = {**LONG, "prompt": "a" * 20}
        first = pool.submit(lambda: post(server, body).code)
        assert until(lambda: server.engine.rows == 1)
        second = pool.submit(lambda: post(server, body).code)
        assert until(lambda: server.engine.waiting == 1)
        third = post(server, body)
        assert third.status == 503
        assert third.headers["Retry-After"] == "1"
        assert third.code == "queue_full"
        assert {first.result(), second.result()} == {"timeout"}


def test_what_fails_takes_no_other_down(
    mixture: MixtureModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(mixture) as server, ThreadPoolExecutor() as pool:
        passes, bad = server.engine._passes, mixture.tokenizer("bad secret\n").input_ids
        begin, go_on, failed = passes.begin, passes.go_on, threading.Event()

        def fails_on_one(rows: list) -> object:
            if any(list(row.job.ids) == bad for row in rows):
                raise RuntimeError("no")
            return begin(rows)

        def fails_once(batch: object, ids: object) -> object:
            if len(ids) > 1 and not failed.is_set():
                failed.set()
                raise RuntimeError("not now")
            return go_on(batch, ids)

        monkeypatch.setattr(passes, "begin", fails_on_one)
        monkeypatch.setattr(passes, "go_on", fails_once)
        prompts = ["bad secret", "a", "bad secret", "river"]
        bodies = [{**LONG, "prompt": prompt, "max_tokens": 40} for prompt in prompts]
        with caplog.at_level(logging.DEBUG):
            answers = list(pool.map(lambda body: post(server, body), bodies))
        assert failed.is_set()
        assert [answer.status for answer in answers] == [500, 200, 500, 200]
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer.status == 200:
                assert answer.text == server.alone(prompt, 40)[0]
        assert "secret" not in caplog.text


def test_a_server_that_stops_lets_answers_end(mixture: MixtureModel) -> None:
    from openai import APIConnectionError, OpenAI  # it takes two seconds to import

    with running(mixture) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=60, temperature=0, stream=True
        )
        text = next(stream).choices[0].text
        server.server.should_exit = True  # as SIGTERM does
        chunks = list(stream)
        assert text + "".join(chunk.choices[0].text for chunk in chunks) == server.alone("a", 60)[0]
        assert chunks[-1].choices[0].finish_reason == "length"
        server.thread.join(60)
        assert not server.engine.alive
        with pytest.raises(APIConnectionError):
            client.models.list()
