"""Files and requests of strangers end in an answer or in words, never in another exception.

By default a short draw of each kind, and what longer draws have found once; `-m slow` draws
a thousand of each. `tests/trials/hostile_inputs.py` draws as many as it is told.
"""

import http.client
import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_model
from hostile import ODD, copied, damage, resealed
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from running import Running, running, tiny_mixture

from loramix import MixtureModel
from loramix.data.sources import load_rows
from loramix.data.tasks import Task
from loramix.errors import LoramixError
from loramix.experiment.reading import load_recipe
from loramix.storage.experts import load_expert
from loramix.storage.format import load

Experts = Callable[..., dict[str, Path]]
SLOW = pytest.mark.slow
FEW = settings(max_examples=40, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=1000, suppress_health_check=list(HealthCheck))
ANY = st.one_of(st.sampled_from(ODD), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
))  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, experts: Experts) -> Path:
    root = tmp_path_factory.mktemp("whole")
    places = experts("llama", ("a", "b"))
    copied(places["a"], root / "adapter")
    MixtureModel.from_experts(tiny_model("llama"), places).save_pretrained(root / "mixture")
    return root


def damaged(whole: Path, folder: Path, cases: range) -> None:
    """Read adapters and mixtures that were damaged at random, as whole ones are read."""
    for case in cases:
        draw = random.Random(case)
        kind = draw.choice(["adapter", "mixture"])
        place = copied(whole / kind, folder / "damaged")
        done = damage(place, draw)
        if kind == "mixture" and draw.random() < 0.8:
            resealed(place)
        try:
            load_expert("a", place) if kind == "adapter" else load(place)
        except LoramixError:
            continue
        except Exception as error:
            raise AssertionError(f"case {case}: {kind}, {done}") from error


def test_damaged_adapters_and_mixtures(whole: Path, tmp_path: Path) -> None:
    damaged(whole, tmp_path, range(80))


@SLOW
def test_many_damaged_adapters_and_mixtures(whole: Path, tmp_path: Path) -> None:
    damaged(whole, tmp_path, range(10_000, 11_000))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layers_to_transform", "\ud800"),  # PEFT compares it with numbers
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", float("inf")),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"[": 8}),
        ("modules_to_save", [None]),
        ("target_modules", {"x": 1}),
        ("eva_config", 1.5),
    ],
)
def test_settings_that_were_once_found(
    whole: Path, tmp_path: Path, setting: str, value: object
) -> None:
    place = copied(whole / "adapter", tmp_path / "damaged")
    file = place / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    try:
        MixtureModel.from_experts(tiny_model("llama"), {"a": place})
    except LoramixError:
        return


def odd_recipe(tmp_path: Path, key: str, value: object) -> None:
    recipe = load_recipe("tiny").model_dump(mode="json")
    place: Any = recipe
    *parents, last = key.split(".")
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    place[int(last) if isinstance(place, list) else last] = value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8", errors="surrogatepass")
    try:
        load_recipe(str(file))
    except LoramixError:
        return


KEYS = [
    *("name", "seed", "base", "base.name", "base.revision", "experts", "tasks", "tasks.0"),
    *("tasks.0.name", "tasks.0.source", "tasks.0.prompt", "tasks.0.expert", "tasks.0.metrics"),
    *("tasks.0.input_column", "tasks.0.split", "samples", "lora", "lora.targets", "gate.hidden"),
    *("gate", "gate.temperature", "comparison.mixtures", "comparison.seeds", "evaluation"),
]


@FEW
@given(st.sampled_from(KEYS), ANY)
@example("tasks.0.source", "\0")
@example("base.name", "~nobody-of-this-name")
@example("base.name", "x" * 5000)
@example("experts", {"x": {"source": "~nobody-of-this-name"}})
@example("comparison.mixtures", {"x": {"k": float("nan")}})
def test_odd_recipes(tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
    odd_recipe(tmp_path_factory.mktemp("odd"), key, value)


@SLOW
@MANY
@given(st.sampled_from(KEYS), ANY)
def test_many_odd_recipes(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    odd_recipe(tmp_path_factory.mktemp("odd"), key, value)


LINES = st.lists(
    st.sampled_from(
        [b'{"a": "x", "b": "y"}', b"a,b", b"x,y", b'"', b"[", b"\xff\xfe", b"\0", b"NaN"]
    )
    | st.binary(max_size=30),
    max_size=6,
).map(b"\n".join)
NAMES = ["x.csv", "x.jsonl", "x.json", "x.txt", "x.tsv", "x.parquet", "x.csv.gz", "x.jsonl.gz"]


def odd_data(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    task = Task(name="t", source=str(folder / name), input_column="a", target_column="b")
    try:
        load_rows(task)
    except LoramixError:
        return


@FEW
@given(st.sampled_from(NAMES), LINES)
@example("x.jsonl", b'{"a":' * 3000)
@example("x.parquet", b"PAR1PAR1")
@example("x.csv.gz", b"\x1f\x8b")
def test_odd_data(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    odd_data(tmp_path_factory.mktemp("odd"), name, content)


@SLOW
@MANY
@given(st.sampled_from(NAMES), LINES)
def test_much_odd_data(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    odd_data(tmp_path_factory.mktemp("odd"), name, content)


@pytest.fixture(scope="module")
def server(make_adapter: Callable[..., Path]) -> Iterator[Running]:
    with running(tiny_mixture(make_adapter)) as started:
        yield started


FIELDS = [
    *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stream", "stop"),
    *("seed", "loramix", "logprobs", "response_format", "stream_options", "task", "user", "x"),
]
PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/routing"]


@SLOW
@pytest.mark.parametrize("start", range(0, 400, 100))
def test_odd_requests(server: Running, start: int) -> None:
    for case in range(start, start + 100):
        draw = random.Random(case)  # not hypothesis, which watches the server's own thread
        fields = {draw.choice(FIELDS): draw.choice(ODD) for _ in range(draw.randint(0, 4))}
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2, **fields}
        address = server.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            data = json.dumps(body).encode("utf-8", "surrogatepass")
            connection.request(
                "POST", draw.choice(PATHS), data, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            answer.read()
        assert answer.status < 500, (case, body)
