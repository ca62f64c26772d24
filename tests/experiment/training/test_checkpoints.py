"""A killed training ends as if nothing had happened, bit by bit; one that diverges stops."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import strengthen

from loramix import MixtureModel
from loramix.bases.loading import load_base
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded
from loramix.errors import StageError
from loramix.experiment.recipe import GateSpec
from loramix.experiment.training.gate_trainer import GateTrainer
from loramix.experiment.training.tokens import Samples, as_samples
from loramix.experiment.training.trainer import learn

Adapters = Callable[..., Path]
TASKS = [Task(name=name, source="x.csv", expert="a" if name == "s" else "b") for name in "stu"]
STEPS = 21  # of an epoch: two lie between two lines of the log, so that an epoch ends between them
pytestmark = [
    pytest.mark.axes(False),  # smaller tests check them
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def slow(value: object) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


class Interrupted(GateTrainer):
    """A trainer that is killed before a step, or whose loss is no number from there on."""

    def __init__(self, *args: Any, stop: int, poison: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop, self.poison = stop, poison

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.training and self.state.global_step == self.stop:
            if self.poison is None:
                raise KeyboardInterrupt
            loss = super().compute_loss(*args, **kwargs)
            return loss * self.poison
        return super().compute_loss(*args, **kwargs)


def samples() -> Samples:
    drawn = torch.Generator().manual_seed(5)

    def encoded() -> Encoded:
        prompt, target = torch.randint(3, 90, (2, 6), generator=drawn).tolist()
        return Encoded(prompt, target[:3])

    return as_samples([[encoded() for _ in range(size)] for size in (8, 7, 6)])


def train(
    folder: Path,
    make_adapter: Adapters,
    spec: GateSpec,
    *,
    stop: int = -1,
    poison: float | None = None,
) -> MixtureModel:
    """Train the gates of a new mixture in a folder, from its last checkpoint if it has one."""
    base = load_base("tiny-llama")
    experts = {name: make_adapter(name, seed=ord(name)) for name in "ab"}
    mixture = strengthen(MixtureModel.from_experts(base.model, experts))
    mixture.train()
    told = {"spec": spec, "tasks": TASKS, "own": ["a", "b", "b"], "experts": ["a", "b"]}
    learn(
        mixture,
        base.tokenizer,
        samples(),
        samples(),
        spec,
        seed=3,
        dtype="float32",
        folder=folder,
        label="gates",
        trainer_class=partial(Interrupted, **told, stop=stop, poison=poison),
    )
    return mixture


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.csv")}


@pytest.mark.parametrize(
    "changes", [{"balance": 0.5}, slow({"entropy": 0.5}), slow({"supervised": 0.5})]
)
def test_a_killed_training_of_gates_ends_as_if_nothing_had_happened(
    tmp_path: Path, make_adapter: Adapters, changes: dict[str, float]
) -> None:
    spec = GateSpec(epochs=2, batch_size=1, group_by_length="balance" in changes, **changes)
    whole = train(tmp_path / "whole", make_adapter, spec)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", make_adapter, spec, stop=STEPS + 3)
    resumed = train(tmp_path / "killed", make_adapter, spec)
    for key, value in whole.gate_state().items():
        assert torch.equal(value, resumed.gate_state()[key]), key
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert len(written(tmp_path / "whole")) == 3


@pytest.mark.parametrize("poison", [float("nan"), slow(float("inf"))])
def test_a_loss_that_is_no_number_stops_training_and_the_last_checkpoint_stays(
    tmp_path: Path, make_adapter: Adapters, poison: float
) -> None:
    spec = GateSpec(epochs=2, batch_size=1)
    with pytest.raises(StageError, match=rf"loss is .+ at step {STEPS + 3}.+checkpoint-{STEPS};"):
        train(tmp_path, make_adapter, spec, stop=STEPS + 2, poison=poison)
    train(tmp_path, make_adapter, spec)


@pytest.mark.parametrize(
    "file", ["optimizer.pt", slow("trainable.safetensors"), slow("sha256.json")]
)
def test_a_damaged_checkpoint_is_not_gone_on_from(
    tmp_path: Path, make_adapter: Adapters, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = GateSpec(epochs=2, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, make_adapter, spec, stop=STEPS + 1)
    path = tmp_path / "checkpoints" / f"checkpoint-{STEPS}" / file
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(KeyboardInterrupt), caplog.at_level("WARNING", "loramix"):
        train(tmp_path, make_adapter, spec, stop=1)
    assert f"checkpoint-{STEPS} is damaged ({file})" in caplog.text
