"""Tasks: what they refuse, how prompts are rendered, and what is built in."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from loramix.errors import DataError
from loramix.sources import HUB_ID, load_rows, locate
from loramix.tasks import BUILT_IN, Cleaning, Task, built_in


def make_task(**changes: object) -> Task:
    fields = {"name": "poem", "source": "a.csv", "input_column": "a", "target_column": "b", "prompt": "on {input}"}
    return Task.model_validate(fields | changes)


def test_rendering_replaces_the_placeholder_and_nothing_else():
    task = make_task(prompt='reply in JSON, like {"a": 1}, to: {input}!')
    assert task.render("what {input} of {0}?") == 'reply in JSON, like {"a": 1}, to: what {input} of {0}?!'


@pytest.mark.parametrize("prompt", ["no place for it", "{input} and {input}", ""])
def test_a_prompt_needs_exactly_one_placeholder(prompt: str):
    with pytest.raises(ValidationError, match="exactly once"):
        make_task(prompt=prompt)


@pytest.mark.parametrize(
    "changes",
    [{"sampels": 3}, {"name": "a/b"}, {"name": ""}, {"samples": 0}, {"max_new_tokens": 0}, {"metrics": ["rogue"]}],
    ids=str,
)
def test_impossible_values_and_unknown_keys_are_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        make_task(**changes)


def test_a_range_that_holds_nothing_is_refused():
    with pytest.raises(ValidationError, match=r"max_target_words \(2\) is below min_target_words \(3\)"):
        Cleaning(min_target_words=3, max_target_words=2)


def test_a_task_is_frozen():
    with pytest.raises(ValidationError):
        make_task().samples = 3


def test_built_in_tasks_are_found_by_name():
    assert set(BUILT_IN) == {"haiku", "arxiv-title", "demo-haiku", "demo-title"}
    assert all(built_in(name).name == name for name in BUILT_IN)
    assert built_in("haiku").render("snow") == "write a haiku about snow"
    assert built_in("arxiv-title").render("We show …") == "summarize: We show …"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no built-in task 'hiaku'.*did you mean 'haiku'"):
        built_in("hiaku")


@pytest.mark.parametrize("name", ["haiku", "arxiv-title"])
def test_sources_on_the_hub_are_well_formed_ids(name: str):
    assert HUB_ID.fullmatch(built_in(name).source)


@pytest.mark.parametrize("name", ["demo-haiku", "demo-title"])
def test_demo_data_ships_in_the_package_and_loads_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = built_in(name)
    assert locate(task.source).is_file()
    rows = load_rows(task)
    assert len(rows) >= 240
    assert all(source.strip() and target.strip() for source, target in rows)


def test_importing_tasks_and_data_loads_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "pyarrow", "datasets", "huggingface_hub")
    code = f"import sys, loramix.tasks, loramix.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
