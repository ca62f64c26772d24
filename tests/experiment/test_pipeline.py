"""The five experiments on tiny models: what they leave, what is skipped, and what survives a
kill.
"""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loramix import MixtureModel
from loramix.cli.tables import show_scores
from loramix.data.samples import read_manifest
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe
from loramix.metrics.words import TOKENIZER
from loramix.storage.files import write_csv

SMALL = [
    *("samples=60", "generation.test_samples=3", "gate.init=zero"),
    *("finetune.epochs=1", "lora.epochs=1", "gate.epochs=1"),
    *("tasks.haiku.max_new_tokens=5", "tasks.title.max_new_tokens=5"),
    *("finetune.train_samples=8", "lora.train_samples=16"),
    *("finetune.validation_samples=4", "lora.validation_samples=4"),
    *("gate.train_samples=32", "gate.validation_samples=4"),
]
pytestmark = [
    pytest.mark.axes(False),  # but in the first run of each shape
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, which is not to be changed."""
    root = tmp_path_factory.mktemp("run") / "tiny"
    runner.run(load_recipe("tiny", SMALL), root)
    return root


@pytest.fixture
def copied(finished: Path, tmp_path: Path, without_plots: None) -> Path:
    """Return a copy of the finished run; what goes on there draws no plot."""
    return shutil.copytree(finished, tmp_path / "copy")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(root: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (root / ".stages").glob("*.json")}


@pytest.mark.axes(True)
def test_a_run_leaves_everything_that_the_reference_leaves(finished: Path) -> None:
    answers = ["benchmark/haiku.csv", "benchmark/title.csv", "cgm/haiku.csv", "cgm/title.csv"]
    answers += ["finetune/haiku/haiku.csv", "lora/haiku/haiku.csv", "lora/haiku/title.csv"]
    trained = ["finetune/haiku", "finetune/title", "lora/haiku", "lora/title", "cgm"]
    for name in answers:
        assert list(rows(finished / name)[0]) == ["input", "generated", "reference"]
        assert len(rows(finished / name)) == 3
    for folder in trained:
        losses = rows(finished / folder / "losses.csv")
        assert any(row["training"] for row in losses)
        assert any(row["validation"] for row in losses)
        assert (finished / folder / "losses.png").read_bytes().startswith(b"\x89PNG")
        assert any((finished / folder / "models").iterdir())
    models = ["base", "full finetune", "LoRA haiku", "LoRA title", "CGM LoRA"]
    assert [row["model"] for row in rows(finished / "rouge.csv")] == models
    assert [row["model"] for row in rows(finished / "bertscore.csv")] == models
    assert [row["model"] for row in rows(finished / "syllables.csv")] == [*models, "reference"]
    assert "tiny-bert layer 2" in rows(finished / "bertscore.csv")[0]["encoder"]
    assert {row["tokenizer"] for row in rows(finished / "rouge.csv")} == {TOKENIZER}
    assert [row["model"] for row in rows(finished / "test_loss.csv")] == models
    assert not list(finished.rglob("checkpoints")), "what training needed in between is gone"
    environment = json.loads((finished / "environment.json").read_text())
    assert set(environment["sources"]) == {"haiku", "title"}
    assert "CGM LoRA" in (finished / "report.html").read_text()
    assert f"Tokenizer: {TOKENIZER}." in (finished / "report.html").read_text()


def test_every_model_answers_the_same_withheld_samples(finished: Path) -> None:
    samples = read_manifest(finished / "data" / "samples.parquet")
    learned = {sample.input for sample in samples if sample.split != "test"}
    for task in ("haiku", "title"):
        asked = asked_of(finished / "benchmark" / f"{task}.csv")
        assert asked
        assert asked == asked_of(finished / "lora" / "haiku" / f"{task}.csv")
        assert asked == asked_of(finished / "cgm" / f"{task}.csv")
        assert not learned & {text for text, _ in asked}


def asked_of(answers: Path) -> list[tuple[str, str]]:
    return [(row["input"], row["reference"]) for row in rows(answers)]


def test_the_mixture_of_a_run_loads_and_its_weights_sum_to_one(finished: Path) -> None:
    mixture = MixtureModel.from_pretrained(finished / "cgm" / "models")
    assert mixture.expert_names == ["haiku", "title"]
    weights = mixture.weights(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(weights) == 8
    for weights_BE in weights.values():
        torch.testing.assert_close(weights_BE.sum(-1), torch.ones(1))
    by_layer = rows(finished / "cgm" / "weights.csv")
    assert {row["expert"] for row in by_layer} == {"haiku", "title"}


def test_a_second_run_skips_everything_and_a_change_redoes_what_depends_on_it(
    copied: Path,
) -> None:
    before = stamps(copied)
    runner.run(load_recipe("tiny", SMALL), copied)
    assert stamps(copied) == before
    runner.run(load_recipe("tiny", [*SMALL, "gate.hidden=3"]), copied)
    after = stamps(copied)
    assert {key for key in after if after[key] != before[key]} == {
        "gate",
        "gate-answers",
        "evaluate",
        "report",
    }


def test_other_questions_need_no_new_training(copied: Path) -> None:
    before = stamps(copied)
    runner.run(load_recipe("tiny", [*SMALL, "generation.test_samples=2"]), copied)
    after = stamps(copied)
    redone = {key for key in after if after[key] != before[key]}
    answered = {key for key in after if key.endswith("-answers")}
    assert redone == {"benchmark", *answered, "evaluate", "report"}
    assert len(rows(copied / "cgm" / "haiku.csv")) == 2


def test_other_metrics_are_measured_on_the_answers_that_are_there(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(copied)
    runner.run(load_recipe("tiny", [*SMALL, "tasks.title.metrics=[rouge, bleu, chrf]"]), copied)
    after = stamps(copied)
    assert {key for key in after if after[key] != before[key]} == {"evaluate", "report"}
    columns = ["model", "title BLEU", "title chrF", "BLEU signature", "chrF signature"]
    assert list(rows(copied / "accuracy.csv")[0]) == columns
    assert "chrF signature: nrefs:1|case:mixed" in (copied / "report.html").read_text()
    show_scores(copied)
    shown = capsys.readouterr().out
    assert "chrF" in shown
    assert "nrefs" not in shown


def test_tables_of_earlier_versions_are_shown_and_measured_anew(
    finished: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their tables name no tokenizer, and their evaluation was done with other settings."""
    earlier = [{**row, "title rouge1": "0.777"} for row in rows(copied / "rouge.csv")]
    columns = [column for column in earlier[0] if column != "tokenizer"]
    write_csv(copied / "rouge.csv", columns, [[row[key] for key in columns] for row in earlier])
    show_scores(copied)
    assert "0.777" in capsys.readouterr().out
    marker = copied / ".stages" / "evaluate.json"
    marker.write_text(marker.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    before = stamps(copied)
    runner.run(load_recipe("tiny", SMALL), copied)
    after = stamps(copied)
    assert {key for key in after if after[key] != before[key]} == {"evaluate"}
    assert rows(copied / "rouge.csv") == rows(finished / "rouge.csv")


def test_one_stage_runs_what_it_needs_and_no_more(tmp_path: Path) -> None:
    runner.run(load_recipe("tiny", SMALL), tmp_path / "run", stage="benchmark")
    assert set(stamps(tmp_path / "run")) == {"prepare", "benchmark"}


@pytest.mark.axes(True)
@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("stage", ["gate", pytest.param(None, marks=pytest.mark.slow)])
def test_the_same_program_runs_an_encoder_decoder(tmp_path: Path, stage: str | None) -> None:
    root = tmp_path / "t5"
    few = ["lora.train_samples=8", "gate.train_samples=8"]
    recipe = load_recipe("tiny", [*SMALL, *few, "base.name=tiny-t5"])
    runner.run(recipe, root, stage=stage)
    if stage is None:
        assert len(rows(root / "rouge.csv")) == 5
        assert len(rows(root / "cgm" / "haiku.csv")) == 3
    layers = {row["layer"] for row in rows(root / "cgm" / "weights.csv")}
    assert len(layers) == 2 * 4 + 2 * 8


DYING = """
import os, signal, sys
from pathlib import Path
from transformers import DefaultFlowCallback
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe

def die(self, args, state, control, **others):
    if "title" in args.output_dir:
        os.kill(os.getpid(), signal.SIGKILL)

DefaultFlowCallback.on_save = die
runner.run(load_recipe("tiny", sys.argv[2:]), Path(sys.argv[1]), stage="lora")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """SIGKILL as the second adapter has saved its first checkpoint; the same run then ends as if
    nothing was.
    """
    settings = [*SMALL, "lora.epochs=3", "lora.batch_size=4", "lora.patience=3"]
    recipe, whole, killed = load_recipe("tiny", settings), tmp_path / "whole", tmp_path / "killed"
    runner.run(recipe, whole, stage="lora")
    died = subprocess.run(
        [sys.executable, "-c", DYING, killed, *settings], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(killed.glob("lora/title/checkpoints/checkpoint-*/trainer_state.json"))) == 1
    assert not (killed / "lora" / "title" / "models").exists()
    done = stamps(killed)["lora-haiku"]
    runner.run(recipe, killed, stage="lora")
    assert stamps(killed)["lora-haiku"] == done
    own, others = whole / "lora" / "title", killed / "lora" / "title"
    adapter = "models/adapter_model.safetensors"
    torch.testing.assert_close(
        load_file(others / adapter), load_file(own / adapter), atol=1e-6, rtol=1e-5
    )
    assert len(validation(own)) == 3
    assert validation(others) == pytest.approx(validation(own))


def validation(folder: Path) -> list[float]:
    losses = [row["validation"] for row in rows(folder / "losses.csv")]
    return [float(loss) for loss in losses if loss]


@pytest.mark.slow
def test_the_losses_do_not_depend_on_the_accumulation(tmp_path: Path) -> None:
    """Batches of 8, and of 2 accumulated 4 times, see the same samples and must report the same
    losses.
    """
    losses = []
    for name, batch, accumulation in (("whole", 8, 1), ("parts", 2, 4)):
        settings = [*SMALL, "samples=48", "lora.epochs=1", "lora.learning_rate=1e-9"]
        settings += [f"lora.batch_size={batch}", f"lora.accumulation={accumulation}"]
        runner.run(load_recipe("tiny", settings), tmp_path / name, stage="lora")
        losses.append(validation(tmp_path / name / "lora/haiku"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_mixture_of_a_run_says_what_it_is(finished: Path) -> None:
    models = finished / "cgm" / "models"
    card = (models / "README.md").read_text()
    for part in (
        "### ROUGE",
        "| CGM LoRA |",
        "## Mean weights",
        "name: tiny",
        "haiku: `write a haiku about {input}`",
    ):
        assert part in card
    measured = json.loads((models / "metrics.json").read_text())
    assert [row["model"] for row in measured["scores"]["ROUGE"]] == [
        row["model"] for row in rows(finished / "rouge.csv")
    ]
    assert [row["task"] for row in measured["mean_weights"]] == ["haiku", "title"]
    auxiliary = rows(finished / "cgm" / "auxiliary.csv")
    assert list(auxiliary[0]) == ["step", "epoch", "entropy", "balance", "supervised"]
    # two experts, near the uniform start
    assert float(auxiliary[0]["entropy"]) == pytest.approx(0.693, abs=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        [
            "gate.context=running",
            "gate.scope=block",
            "gate.activation=sigmoid",
            "gate.init=prototype",
        ],
        [
            "gate.context=token",
            "gate.activation=top-1",
            "gate.init=arrow",
            "gate.base_slot=true",
            "gate.balance=0.1",
        ],
    ],
    ids=["running", "token"],
)
def test_every_kind_of_gate_goes_through_a_run(copied: Path, settings: list[str]) -> None:
    runner.run(load_recipe("tiny", [*SMALL, *settings]), copied)
    mixture = MixtureModel.from_pretrained(copied / "cgm" / "models")
    assert mixture.gate_config.context == settings[0].partition("=")[2]
    assert len(rows(copied / "cgm" / "weights.csv")) == 2 * 2 * len(mixture.layers)
    assert "CGM LoRA" in (copied / "report.html").read_text()


@pytest.mark.slow
def test_auxiliary_losses_do_what_they_are_for(tmp_path: Path, finished: Path) -> None:
    """Each is far lower with its coefficient than without, over the last batches of both tasks."""

    def trained(folder: str, *settings: str) -> list[dict[str, str]]:
        root = tmp_path / folder
        shutil.copytree(finished, root)
        recipe = load_recipe(
            "tiny",
            [*SMALL, "gate.epochs=2", "gate.learning_rate=0.02", "gate.rates=equal", *settings],
        )
        runner.run(recipe, root, stage="gate")
        return rows(root / "cgm" / "auxiliary.csv")[-4:]

    def mean(losses: list[dict[str, str]], name: str) -> float:
        return sum(float(row[name]) for row in losses) / len(losses)

    without = trained("without")
    for name in ("entropy", "balance", "supervised"):
        assert mean(trained(name, f"gate.{name}=2"), name) < mean(without, name) / 2
