"""Tasks: their checks, their prompts, and the built-in ones."""

import json
import shlex
import subprocess
import sys
from collections import Counter
from importlib.resources import files

import pytest
from pydantic import ValidationError

from loramix.config import PLACEHOLDER, fill
from loramix.data.catalogue import BUILT_IN, built_in
from loramix.data.places import locate
from loramix.data.sources import load_rows
from loramix.data.tasks import Cleaning, Task
from loramix.errors import DataError
from loramix.experiment.reading import load_recipe
from loramix.storage.hub import is_hub_id

GENERATIVE = {"haiku", "arxiv-title", "demo-haiku", "demo-title", "demo-command"}
QUESTIONS = {"commonsense-qa", "medqa", "science-qa"}


def make_task(**changes: object) -> Task:
    fields = {
        "name": "poem",
        "source": "a.csv",
        "input_column": "a",
        "target_column": "b",
        "prompt": "on {input}",
    }
    return Task.model_validate(fields | changes)


def test_rendering_replaces_the_placeholder_and_nothing_else():
    task = make_task(prompt='reply in JSON, like {"a": 1}, to: {input}!')
    assert (
        task.render("what {input} of {0}?")
        == 'reply in JSON, like {"a": 1}, to: what {input} of {0}?!'
    )


@pytest.mark.parametrize("prompt", ["no place for it", "{input} and {input}", ""])
def test_a_prompt_needs_exactly_one_placeholder(prompt: str):
    for changes in (
        {"prompt": prompt},
        {"paraphrases": ["about {input}", prompt]},
        {"inverse": prompt},
    ):
        kind = next(iter(changes)).removesuffix("s")
        with pytest.raises(ValidationError, match=f"{kind} '.*' must hold {{input}} exactly once"):
            make_task(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampels": 3},
        {"name": "a/b"},
        {"name": ""},
        {"samples": 0},
        {"max_new_tokens": 0},
        {"metrics": ["rogue"]},
    ],
    ids=str,
)
def test_impossible_values_and_unknown_keys_are_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        make_task(**changes)


def test_a_range_that_holds_nothing_is_refused():
    with pytest.raises(
        ValidationError, match=r"max_target_words \(2\) is below min_target_words \(3\)"
    ):
        Cleaning(min_target_words=3, max_target_words=2)


def test_a_task_is_frozen():
    with pytest.raises(ValidationError):
        make_task().samples = 3


def test_built_in_tasks_are_found_by_name():
    assert set(BUILT_IN) == GENERATIVE | QUESTIONS
    assert all(built_in(name).name == name for name in BUILT_IN)
    assert built_in("haiku").render("snow") == "write a haiku about snow"
    assert built_in("arxiv-title").render("We show …") == "summarize: We show …"
    assert (
        built_in("demo-command").render("list all files")
        == "write a shell command to list all files"
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_task_has_four_other_wordings(name: str):
    task = built_in(name)
    assert len({task.prompt, *task.paraphrases}) == 5
    prompts = [fill(text, "SOMETHING") for text in task.paraphrases]
    assert all("SOMETHING" in prompt and PLACEHOLDER not in prompt for prompt in prompts)


@pytest.mark.parametrize("name", sorted(GENERATIVE))
def test_an_inverse_is_another_question_than_its_task(name: str):
    task = built_in(name)
    assert task.inverse is not None
    assert task.inverse not in (task.prompt, *task.paraphrases)


@pytest.mark.parametrize(
    ("name", "word"), [("haiku", "haiku"), ("arxiv-title", "title"), ("demo-command", "command")]
)
def test_the_word_that_names_a_task_is_not_in_all_wordings(name: str, word: str):
    found = [word in text.lower() for text in built_in(name).paraphrases]
    assert any(found)
    assert found.count(False) >= 2


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_the_prompt_of_a_question_names_no_task(name: str):
    task = built_in(name)
    assert task.render("Why?") == "Why?"
    assert task.paraphrases == built_in("commonsense-qa").paraphrases
    assert task.metrics == ("exact-match", "bleu")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no built-in task 'hiaku'.*did you mean 'haiku'"):
        built_in("hiaku")


@pytest.mark.parametrize("name", ["haiku", "arxiv-title", *sorted(QUESTIONS)])
def test_sources_on_the_hub_are_well_formed_ids(name: str):
    assert is_hub_id(built_in(name).source)


@pytest.mark.parametrize("name", ["demo-haiku", "demo-title", "demo-command"])
def test_demo_data_ships_in_the_package_and_loads_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = built_in(name)
    assert locate(task.source).is_file()
    rows = load_rows(task)
    assert len(rows) >= 240
    assert all(source.strip() and target.strip() for source, target in rows)


@pytest.fixture
def commands() -> list[dict[str, str]]:
    text = (files("loramix.data") / "demo" / "command.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_demos_requests_and_commands_are_short_and_do_not_repeat(
    commands: list[dict[str, str]],
):
    for key in ("request", "command"):
        texts = [" ".join(pair[key].split()) for pair in commands]
        assert [
            text for text, times in Counter(text.casefold() for text in texts).items() if times > 1
        ] == []
        assert [text for text in texts if not 1 <= len(text.split()) <= 12] == []
        assert texts == [pair[key] for pair in commands]


def test_the_demos_requests_continue_the_prompt(commands: list[dict[str, str]]):
    requests = [pair["request"] for pair in commands]
    assert [
        text for text in requests if text != text.lower() or text.endswith((".", "?", "!"))
    ] == []


def test_the_demos_commands_are_whole_and_varied(commands: list[dict[str, str]]):
    words = [
        shlex.split(pair["command"]) for pair in commands
    ]  # raises ValueError for an open quotation
    assert max(Counter(command[0] for command in words).values()) < len(words) / 10
    assert len({command[0] for command in words}) > 100


def test_recipes_with_three_tasks_hold_them():
    demo, three = load_recipe("demo"), load_recipe("demo-three")
    assert three.tasks[:2] == demo.tasks
    assert [task.name for task in three.tasks] == ["haiku", "title", "command"]
    assert (three.samples, three.lora, three.gate) == (240, demo.lora, demo.gate)
    questions = load_recipe("qa-t5-base", ["base.name=tiny-t5"])
    assert {task.name for task in questions.tasks} == QUESTIONS
    assert (questions.lora.rank, questions.lora.alpha, questions.gate.hidden) == (16, 1, 4)
    assert next(task.max_input_tokens for task in questions.tasks if task.name == "medqa") >= 256


def test_importing_tasks_and_data_loads_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "pyarrow", "datasets", "huggingface_hub")
    code = (
        "import sys, loramix.data.tasks, loramix.data.samples; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "[]\n"
    )
