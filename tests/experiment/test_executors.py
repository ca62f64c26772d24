"""Executors: what they are asked for in words, and what they refuse before they begin."""

import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from loramix import errors
from loramix.errors import LoramixError, MissingExtraError, OutputError, StageError
from loramix.experiment import runner
from loramix.experiment.executors.in_order import in_order
from loramix.experiment.executors.job import Job, unfinished
from loramix.experiment.executors.on_ray import Place, check_address, connected
from loramix.experiment.executors.resources import Resources, read_resources
from loramix.experiment.graph import run_steps
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import STAGES, Recipe
from loramix.experiment.run import Run
from loramix.experiment.sizes import check_room


def job(key: str, *needs: str, finished: bool, done: list[str] | None = None) -> Job:
    work = (lambda: None) if done is None else (lambda: done.append(key))
    return Job(key, key, needs, work, finished, Path(f"{key}.json"))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["lora=1gpu"], {"lora": Resources(gpu=1.0)}),
        (["lora=0.25gpu"], {"lora": Resources(gpu=0.25)}),
        (["gate=4cpu, 1gpu", "lora=2 CPU"], {"gate": Resources(4, 1.0), "lora": Resources(2)}),
        (["report=1.5gb,0gpu"], {"report": Resources(gpu=0.0, gb=1.5)}),
    ],
    ids=str,
)
def test_resources_are_read(texts: list[str], expected: dict[str, Resources]) -> None:
    assert read_resources(texts, STAGES) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1gpu", "names no stage"),
        ("gates=1gpu", "did you mean 'gate'"),
        ("lora=", "not one amount"),
        ("lora=gpu", "not one amount"),
        ("lora=-1gpu", "not one amount"),
        ("lora=1gpu,1gpu", "not one amount"),
        ("lora=1gpus", "did you mean 'gpu'"),
        ("lora=8tpu", "the units are cpu, gpu, gb"),
        ("lora=0cpu", "whole processors"),
        ("lora=1.5cpu", "whole processors"),
        ("lora=1.5gpu", "whole ones"),
        ("lora=0gb", "some memory"),
    ],
)
def test_what_is_no_resource_is_refused_in_words(text: str, told: str) -> None:
    with pytest.raises(StageError, match=told):
        read_resources([text], STAGES)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(StageError) as caught:
        read_resources(["lore=1gpu", "gate=1gpx", "lora=1gpu", "lora=2gpu"], STAGES)
    assert str(caught.value).count("--step-resources") == 3


def test_what_needs_an_unfinished_job_is_unfinished() -> None:
    jobs = [
        job("a", finished=True),
        job("b", finished=False),
        job("c", "a", finished=True),
        job("d", "b", finished=True),  # what b leaves may be another
        job("e", "c", "d", finished=True),
    ]
    assert [each.key for each in unfinished(jobs)] == ["b", "d", "e"]
    assert unfinished([jobs[0], jobs[2]]) == []


def test_one_process_does_all_in_order() -> None:
    done: list[str] = []
    in_order([job(key, finished=False, done=done) for key in "abc"], Path())
    assert done == ["a", "b", "c"]


def test_an_executor_gets_the_steps_with_what_they_need(tmp_path: Path) -> None:
    given: list[Job] = []
    runner.run(
        load_recipe("tiny"),
        tmp_path,
        stage="gate",
        executor=lambda jobs, root: given.extend(jobs),
    )
    needs = {each.key: set(each.needs) for each in given}
    assert list(needs) == ["prepare", "lora-haiku", "lora-title", "gate", "gate-answers"]
    assert needs["gate"] == {"lora-haiku", "lora-title"}
    assert not any(each.finished for each in given)


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head.example:6379"])
def test_an_address_is_taken(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["tiny", "", "gate.hidden=4", "ray://10.0.0.1:10001", "a:b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StageError, match="HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--step-resources", "lora=1gpu"], 2, "add --cluster"),
        (["--cluster", "--step-resources", "compute=1gpu"], 1, "there is no stage 'compute'"),
        (["--cluster", "gate.hidden=4"], 1, "--cluster=local, where a recipe or setting follows"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_command_line_refuses_before_any_work(
    call: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    command: str,
    options: list[str],
    status: int,
    told: str,
) -> None:
    done = call(command, "tiny", "--out", str(tmp_path / "run"), *options)
    assert done.returncode == status
    assert told in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", [0, 70000, "closed"])
def test_a_cluster_that_is_not_there_is_told_at_once(port: int | str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    address = f"127.0.0.1:{free if port == 'closed' else port}"
    with (
        pytest.raises(StageError, match=f"there is no Ray cluster at '{address}'"),
        connected(address),
    ):
        raise AssertionError


@pytest.mark.parametrize("seen", ["nothing", "another folder", "no such current folder"])
def test_a_worker_that_does_not_see_the_run_folder_says_so(
    seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(Path("run"), tmp_path, "head", "1a2b")
    place.mark.parent.mkdir(parents=True)
    place.mark.write_text("1a2b")
    place.enter()
    if seen == "nothing":
        place.mark.unlink()
    elif seen == "another folder":
        place.mark.write_text("3c4d")
    else:
        place = Place(Path("run"), tmp_path / "gone", "head", "1a2b")
    with pytest.raises(StageError, match=r"does not see the run folder .*run of head"):
        place.enter()


def test_trainings_side_by_side_need_room_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    recipe = load_recipe("tiny", ["base.name=tiny-gpt2"])
    steps = run_steps(Run(recipe, tmp_path), {})

    def needed(*recipes: Recipe, side_by_side: bool) -> int:
        plans = [(each, steps) for each in recipes]
        with pytest.raises(OutputError) as caught:
            check_room(tmp_path, plans, side_by_side=side_by_side)
        return int(re.search(r"about ([\d,]+) MB", str(caught.value))[1].replace(",", ""))

    alone = needed(recipe, side_by_side=False)
    assert alone < needed(recipe, side_by_side=True)
    assert alone < needed(recipe, recipe, side_by_side=False)
    assert needed(recipe, recipe, side_by_side=True) == pytest.approx(
        2 * needed(recipe, side_by_side=True), abs=1
    )


KINDS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, LoramixError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_come_from_other_processes_as_they_are(kind: type[LoramixError]) -> None:
    error = kind("ray", "cluster") if kind is MissingExtraError else kind("some words")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
