"""Gates in a run: how fast their parameters learn, and when what they learned is kept."""

import csv
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from loramix import GateConfig, MixtureModel
from loramix.config import PLACEHOLDER
from loramix.data.samples import Sample
from loramix.experiment.answers import Loss
from loramix.experiment.paired import gains
from loramix.experiment.reading import load_recipe
from loramix.experiment.runner import run
from loramix.experiment.training.gate_check import behind
from loramix.experiment.training.gate_start import start_prompts
from loramix.experiment.training.gate_trainer import widths
from loramix.mixture.gate import ContextGate

SMALL = [
    *("samples=60", "lora.epochs=1", "lora.train_samples=16", "gate.epochs=1"),
    *("gate.train_samples=8", "gate.validation_samples=8", "lora.validation_samples=2"),
    *("tasks.haiku.max_new_tokens=2", "tasks.title.max_new_tokens=2", "generation.test_samples=2"),
]
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.mark.parametrize("largest_bias", [0.0, 40.0])
def test_a_step_moves_no_score_by_more_than_a_few_rates(largest_bias: float) -> None:
    """Adam moves every parameter by its rate, here in the direction that moves a score most."""
    width, rate = 64, 0.01
    gate = ContextGate(width, experts=3, config=GateConfig(hidden=5, carry=False))
    nn.init.constant_(gate.lift.bias, largest_bias)
    nn.init.ones_(gate.score.weight)
    context = torch.ones(1, 1, width)
    before = gate.score(gate.lift(context).relu())
    with torch.no_grad():
        for parameter, inputs in widths(gate):
            parameter += rate / inputs
    after = gate.score(gate.lift(context).relu())
    assert float((after - before).detach().max()) < 15 * rate


def test_gates_start_from_own_prompts_other_wordings_and_foreign_inputs() -> None:
    recipe = load_recipe("tiny", ())
    samples = {
        name: [Sample(name, str(n), "train", f"{name} {n}", "a target") for n in range(2)]
        for name in ("haiku", "title")
    }
    asked = start_prompts(recipe, samples, worded=True)["haiku"]
    own = [text for task, text, _ in asked if task.prompt != PLACEHOLDER]
    others = [text for task, text, _ in asked if task.prompt == PLACEHOLDER]
    assert own == ["haiku 0", "haiku 1"]
    assert any(text.endswith("haiku 1") and text != "haiku 1" for text in others)
    assert any("title" in text and "haiku" in text for text in others)


def gates_of(place: Path, *settings: str) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
    """Return what gates.csv says after a run with these settings, and the gates' parameters."""
    done = run(load_recipe("tiny", [*SMALL, *settings]), place, stage="gate")
    assert (done.folder("gate") / "losses.png").is_file()
    with (place / "cgm" / "gates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, MixtureModel.from_pretrained(place / "cgm" / "models").gate_state()


@pytest.mark.slow
def test_training_that_does_not_help_is_undone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a random base nothing does."""
    untrained, start = gates_of(tmp_path, "gate.epochs=0")
    assert all(row["start"] == row["trained"] for row in untrained)
    assert {(row["task"], row["prompts"]) for row in untrained} == {
        (task, prompts)
        for task in ("haiku", "title")
        for prompts in ("as the task asks", "otherwise")
    }
    wild = ("gate.learning_rate=300", "gate.rates=equal")
    with caplog.at_level(logging.INFO, logger="loramix"):
        undone, left = gates_of(tmp_path, *wild)
    assert "they stay where they started" in caplog.text
    assert {row["kept"] for row in undone} == {"0"}
    assert all(torch.equal(left[key], start[key]) for key in start)
    kept, moved = gates_of(tmp_path, *wild, "gate.keep_start=false")
    assert {row["kept"] for row in kept} == {"1"}
    assert not all(torch.equal(moved[key], start[key]) for key in start)


def losses(*means: float) -> list[Loss]:
    return [Loss(mean, 5) for mean in means]


def test_training_helps_if_the_mean_falls_and_no_part_rises() -> None:
    before = [losses(2.0, 2.1, 1.9), losses(3.0, 3.1, 3.2)]
    assert gains(before, [losses(1.9, 2.0, 1.8), losses(3.0, 3.1, 3.2)])
    assert gains(before, [losses(1.9, 2.0, 1.8), losses(3.0, 3.1, 3.203)]), "too little to matter"
    assert not gains(before, [losses(1.0, 1.1, 0.9), losses(2.9, 3.2, 3.24)]), "one part, in noise"
    assert not gains(before, before)
    assert not gains(before, [losses(1.0, 1.1, 0.9), losses(3.1, 3.2, 3.3)]), "one part rises"
    assert not gains(before, [losses(2.9, 1.2, 1.8), losses(3.0, 3.1, 3.2)]), "only noise"


def test_gates_that_are_behind_are_named() -> None:
    place = ("haiku", "as the task asks")
    left, own = {place: losses(2.0, 2.1, 1.9)}, {place: losses(1.9, 2.0, 1.8)}
    (warning,) = behind(left, "its own expert", own)
    assert "on haiku (as the task asks) the gates are behind its own expert by 0.1000" in warning
    assert not list(behind(own, "its own expert", left))


def test_many_experts_get_the_hidden_units_they_need() -> None:
    tasks = [{"use": "demo-haiku", "name": f"haiku-{number}"} for number in range(9)]
    wide = load_recipe("tiny", [f"tasks={tasks}"])
    assert wide.gate.hidden == 9
    assert load_recipe("tiny").gate.hidden == 8
    assert load_recipe("tiny", [f"tasks={tasks}", "gate.hidden=12"]).gate.hidden == 12
