"""Sweeps: every combination in a run folder of its own, and what they share done once."""

import logging
import re
import shutil
from pathlib import Path

import pytest
from html_page import Page

from loramix.errors import RecipeError, StageError
from loramix.experiment import runner
from loramix.experiment.executors.job import Job
from loramix.experiment.reading import load_recipe
from loramix.experiment.sweep.runs import sweep
from loramix.experiment.sweep.settings import read_sweep
from loramix.storage.files import read_csv

SMALL = [
    *("samples=24", "generation.test_samples=2", "gate.init=zero", "gate.keep_start=false"),
    "gate.learning_rate=0.1",
    *("finetune.epochs=1", "lora.epochs=1", "gate.epochs=1"),
    *("finetune.train_samples=8", "lora.train_samples=8", "gate.train_samples=8"),
]
SWEPT = ["gate.hidden=2,4"]
NAMES = ["gate.hidden-2", "gate.hidden-4"]
pytestmark = pytest.mark.axes(False)  # smaller tests check them


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small sweep, which is not to be changed."""
    settings = read_sweep("tiny", [*SMALL, *SWEPT])
    return sweep(settings, tmp_path_factory.mktemp("sweeps") / "swept", stage="gate")


def files(root: Path) -> dict[str, bytes]:
    """Return what a run has learned, by path."""
    found = [path for end in ("csv", "safetensors") for path in root.rglob(f"*.{end}")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_every_combination_is_a_setting() -> None:
    settings = read_sweep(
        "tiny", ["lora.epochs=1", "gate.hidden=4, 8", "gate.learning_rate=1e-3,0.003"]
    )
    assert [setting.name for setting in settings] == [
        f"gate.hidden-{hidden}_gate.learning_rate-{rate}"
        for hidden in (4, 8)
        for rate in (0.001, 0.003)
    ]
    assert [(each.recipe.gate.hidden, each.recipe.gate.learning_rate) for each in settings] == [
        *((4, 0.001), (4, 0.003), (8, 0.001), (8, 0.003))
    ]
    assert {each.recipe.lora.epochs for each in settings} == {1}


def test_commas_in_a_value_part_nothing() -> None:
    settings = read_sweep("tiny", ["lora.targets=[q_proj,v_proj],[q_proj]", "name='a'"])
    assert [each.recipe.lora.targets for each in settings] == [("q_proj", "v_proj"), ("q_proj",)]
    settings = read_sweep("tiny", ["tasks.haiku.prompt='on {input}, short','{input}: a haiku'"])
    assert [each.recipe.tasks[0].prompt for each in settings] == [
        *("on {input}, short", "{input}: a haiku")
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing is swept"),
        (["gate.hidden=4"], "nothing is swept"),
        (["gate.hidden=4,8", "gate.hidden=16"], "'gate.hidden' is given twice"),
        (["gate.hidden=4,,8"], "empty value"),
        (["gate.hidden=4,8,4"], "the value 4 twice"),
        (["gate.learning_rate=1e-3,0.001"], "the value 0.001 twice"),
        (["gate.hidden=4,4.0"], "are the same"),
        (["gate.hiden=4,8"], "did you mean 'hidden'"),
        (["tasks.haikus.prompt={input},a {input}"], "did you mean 'haiku'"),
        (["gate.hidden=4,0"], r"greater than or equal to 1 .*\(with gate.hidden=0\)"),
        (["lora.rank=2,many"], r"\(with lora.rank=many\)"),
        (["gate.activation=softmax,top-k", "gate.k=1,9"], r"\(with .*gate.k=9\)"),
    ],
    ids=str,
)
def test_what_cannot_be_swept_is_told_before_any_work(arguments: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_sweep("tiny", arguments)


def test_all_problems_are_told_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_sweep("tiny", ["gate.hidden=0,4", "lora.rank=0,2", "finetune.epoch=3"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("epochs" in line for line in lines)
    with pytest.raises(RecipeError, match="there is no recipe 'tinny'"):
        read_sweep("tinny", SWEPT)


def test_a_stage_without_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="leaves none"):
        sweep(read_sweep("tiny", SWEPT), tmp_path / "swept", stage="prepare")
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_ordered_by_validation_loss(swept: Path) -> None:
    rows = read_csv(swept / "sweep.csv")
    losses = [float(row["validation loss"]) for row in rows]
    assert losses == sorted(losses)
    assert {row["run"]: row["gate.hidden"] for row in rows} == dict(zip(NAMES, "24", strict=True))
    checked = read_csv(swept / rows[0]["run"] / "cgm/gates.csv")
    mean = sum(float(row["trained"]) for row in checked) / len(checked)
    assert losses[0] == pytest.approx(mean, abs=1e-6)
    assert not any("test" in column.lower() for column in rows[0])


def test_the_page_shows_every_setting(swept: Path) -> None:
    text = (swept / "sweep.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.headings == [
        *("loramix: sweep of tiny", "Settings", "Loss over each setting", "Recipe")
    ]
    assert all(source.startswith("data:image/svg+xml") for source in page.loads)
    assert all(name in text for name in NAMES)
    assert "Lowest validation loss: gate.hidden " in text


def test_shared_steps_are_done_once_and_every_folder_is_a_run(swept: Path, tmp_path: Path) -> None:
    one, other = (swept / name for name in NAMES)
    shared = [name for name in files(one) if not name.startswith("cgm/")]
    assert len(shared) > 6
    weights = "lora/haiku/models/adapter_model.safetensors"
    assert (one / weights).stat().st_ino == (other / weights).stat().st_ino  # room for one
    assert {name for name in shared if files(one)[name] != files(other)[name]} == set()
    given: list[Job] = []
    recipe, root = load_recipe("tiny", [*SMALL, "gate.hidden=4"]), tmp_path / "run"
    shutil.copytree(other, root)
    runner.run(recipe, root, stage="gate", executor=lambda jobs, _: given.extend(jobs))
    assert [job.key for job in given if not job.finished] == ["gate-answers"]


def test_a_sweep_goes_on_and_grows(
    swept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "swept"
    shutil.copytree(swept, root)
    before = files(root)
    shutil.rmtree(root / NAMES[0] / "cgm")
    shutil.rmtree(root / NAMES[1] / "lora/haiku")
    with caplog.at_level(logging.INFO, "loramix"):
        sweep(read_sweep("tiny", [*SMALL, *SWEPT]), root, stage="gate")
    begun = [line for line in caplog.messages if re.search(r": (epochs|taken from|context)", line)]
    assert [line.partition(": ")[0] for line in begun] == [
        f"{NAMES[0]}/gate",
        f"{NAMES[1]}/lora-haiku",
    ]
    assert f"{NAMES[1]}/lora-haiku: taken from {NAMES[0]}" in begun
    after = files(root)
    assert [name for name in before if after.get(name) != before[name]] == []


@pytest.mark.parametrize(
    ("argument", "compared"),
    [("gate.bare=0,0.5", True), ("seed=0,1", False), ("lora.validation_samples=2,3", False)],
)
def test_losses_of_other_samples_are_not_set_side_by_side(
    argument: str, compared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramix.experiment.sweep.results._of_gates", lambda run: (1.0, False))
    root = sweep(read_sweep("tiny", [argument]), tmp_path, stage="gate", executor=lambda *_: None)
    text = (root / "sweep.html").read_text()
    assert ("no one is lower than another" not in text) is compared
    assert ("Loss over each setting" in text) is compared
