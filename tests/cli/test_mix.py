"""`mix`, `add`, `remove` and `chat`: own adapters in, one model out."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loramix import MixtureModel
from loramix.assembly import assemble
from loramix.storage.manifest import read_config

Call = Callable[..., subprocess.CompletedProcess[str]]
WORDS = {"a": "rain moon snow", "b b": "SELECT id FROM table", "c": "<p>some html</p>"}
pytestmark = pytest.mark.axes(False)  # smaller tests check them


@pytest.fixture
def here(
    tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a folder, now the current one, with examples of three adapters."""
    monkeypatch.chdir(tmp_path)
    for name, words in WORDS.items():
        rows = [{"prompt": f"{words} {n} {words}", "completion": f"{n}"} for n in range(8)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"{name}.jsonl").write_text(text, encoding="utf-8")
    Path("adapters").symlink_to(make_adapter("a", seed=1).parents[1])
    for number, name in enumerate(WORDS, start=1):
        make_adapter(name, seed=number)
    return tmp_path


def experts(*names: str) -> list[str]:
    places = {name: f"adapters/{number}/{name}" for number, name in enumerate(WORDS, start=1)}
    return [text for name in names for text in ("--expert", f"{name}={places[name]}")]


def examples(*names: str) -> list[str]:
    return [text for name in names for text in ("--examples", f"{name}={name}.jsonl")]


def test_adapters_become_a_mixture_that_grows_shrinks_and_talks(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["mix", "mine", *experts("a", "b b"), *examples("a", "b b")]
    made = call(*order)
    assert made.returncode == 0, made.stderr
    assert "routing: from prompts, without training" in made.stdout
    assert "share of gain" in made.stdout
    assert "Next:    loramix chat mine" in made.stderr
    held = json.loads(Path("mine/verdict.json").read_text())
    assert [each["expert"] for each in held["experts"]] == ["a", "b b"]
    assert all(each["weights"][each["expert"]] > 0.8 for each in held["experts"])
    assert "prompts of" in Path("mine/README.md").read_text()
    assert "<h2>Routing</h2>" in Path("mine/verdict.html").read_text()

    again = call(*order)
    assert "already done" in again.stderr
    assert again.stdout == made.stdout

    added = call("add", "mine", *experts("c"), *examples("c"))
    assert added.returncode == 0, added.stderr
    assert "added: 'c', from 6 prompts" in added.stdout
    mixture = MixtureModel.from_pretrained("mine")
    for name, words in WORDS.items():
        weights = mixture.weights(**mixture.text_inputs(f"{words} 9 {words}"))
        place = mixture.expert_names.index(name)
        mean = sum(float(each[0, place]) for each in weights.values()) / len(weights)
        assert mean > 0.8, name

    monkeypatch.setattr(sys, "stdin", io.StringIO("rain moon snow 3\n\n/quit\nnever\n"))
    said = call("chat", "mine", "--max-new-tokens", "4")
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("[a ") == 1  # the weights of one answer

    removed = call("remove", "mine", "a")
    assert removed.stdout.strip() == "mine: b b, c"
    assert [each.name for each in read_config(Path("mine")).experts] == ["b b", "c"]
    made = json.loads(Path("mine/mix.json").read_text())
    assert made["facts"]["experts"] == "b b, c"
    assert made["changes"] == ["added 'c'", "removed 'a'"]
    assert not Path("mine/verdict.json").exists()  # it was on another mixture
    assert "prompts of" not in Path("mine/README.md").read_text()


def test_gates_decide_together_by_what_asks_unless_told_otherwise(here: Path, call: Call) -> None:
    order = ["mix", "mine", *experts("a", "b b"), *examples("a", "b b")]
    made = call(*order)
    assert "they decide together, from a first pass of the base" in made.stdout
    gate = read_config(Path("mine")).gate
    assert (gate.first_pass, gate.pooling, gate.scope) == (True, "attention", "block")
    assert "already done" in call(*order, "--first-pass", "--pooling", "attention").stderr
    again = call(*order, "--no-first-pass", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert "each decides for its own layer" in again.stdout
    gate = read_config(Path("mine")).gate
    assert (gate.first_pass, gate.pooling, gate.scope) == (False, "mean", "layer")


@pytest.mark.usefixtures("few_neutral_texts")
def test_without_examples_the_adapters_alone_route(here: Path, call: Call) -> None:
    made = call("mix", "mine", *experts("a", "b b"))
    assert made.returncode == 0, made.stderr
    assert "from the adapters alone" in made.stdout
    assert "each decides for its own layer" in made.stdout
    refused = call("add", "mine", *experts("c"), *examples("c"))
    assert "does not remember the prompts of its experts" in refused.stderr


def test_a_killed_verdict_is_made_up_for(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["mix", "mine", *experts("a", "b b"), *examples("a", "b b")]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(assemble, "judge", killed)
        assert call(*order).returncode != 0
    assert MixtureModel.from_pretrained("mine").expert_names == ["a", "b b"]
    assert call(*order).returncode == 0
    assert Path("mine/verdict.json").is_file()


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([*experts("a"), "--expert", "b"], "write NAME=…, such as sql=./sql-lora"),
        ([*experts("a"), *experts("a")], "--expert names 'a' twice"),
        ([*experts("a"), "--expert", "z=adapters/1/a"], "'a' and 'z' are the same adapter"),
        ([*experts("a", "b b"), *examples("a")], "none for b b; every expert needs some"),
        ([*experts("a", "b b"), *examples("a", "c")], "no expert 'c'"),
        (
            [*experts("a"), *examples("a"), "--prompt", "a=no input"],
            "must hold {input} exactly once",
        ),
        ([*experts("a"), "--prompt", "a=Ask {input}"], "add --examples a=FILE"),
        ([*experts("a"), "--base", "tiny-gpt2"], "the base here is 'tiny-gpt2'"),
        ([*experts("a"), "--expert", "d=org/none"], "there is no adapter 'org/none'"),
        ([*experts("a"), "--expert", "d=nowhere/x"], "there is no adapter 'nowhere/x'"),
        ([*experts("a"), "--lossy", "everything"], "there is no part 'everything'"),
        ([*experts("a"), "--examples", "a=one.txt"], "1 examples, and 2 are the fewest"),
        ([*experts("a"), "--examples", "a=gone.csv"], "examples of 'a': no such file"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_written(
    here: Path, call: Call, order: list[str], said: str
) -> None:
    Path("one.txt").write_text("one\n", encoding="utf-8")
    made = call("mix", "mine", *order)
    assert made.returncode == 1
    assert said in made.stderr
    assert "Traceback" not in made.stderr
    assert not Path("mine").exists()


@pytest.mark.usefixtures("few_neutral_texts")
def test_nothing_else_is_overwritten(here: Path, call: Call) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work", encoding="utf-8")
    assert "is not replaced" in call("mix", "mine", *experts("a", "b b")).stderr
    assert Path("mine/thesis.txt").exists()
    other = ["mix", "other", *experts("a", "c"), *examples("a", "c")]
    assert call("mix", "other", *experts("a", "b b"), *examples("a", "b b")).returncode == 0
    assert "--overwrite" in call(*other).stderr
    assert call(*other, "--overwrite").returncode == 0
    assert [each.name for each in read_config(Path("other")).experts] == ["a", "c"]


def test_a_full_disk_is_found_first(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    made = call("mix", "mine", *experts("a", "b b"))
    assert "the disk has 0 MB left" in made.stderr
    assert not Path("mine").exists()


def test_gates_need_examples_to_attend(here: Path, call: Call) -> None:
    refused = call("mix", "mine", *experts("a", "b b"), "--pooling", "attention")
    assert refused.returncode == 1
    assert "give --examples of every expert, or leave out --pooling" in refused.stderr
    assert not Path("mine").exists()
