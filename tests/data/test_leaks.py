"""The leak guard: no model is tested on what it has learned from."""

from pathlib import Path

import pytest

from loramix.data.leaks import record, refuse_leaks
from loramix.data.samples import Sample
from loramix.errors import LeakError


def sample(number: int, *, source: str | None = None, target: str | None = None) -> Sample:
    return Sample(
        "haiku",
        f"{number:016x}",
        "train",
        source or f"Input {number}",
        target or f"target {number}",
    )


@pytest.fixture
def learned(tmp_path: Path) -> dict[str, Path]:
    record(tmp_path / "expert" / "learned_from.csv", [sample(1), sample(2)])
    return {"LoRA haiku": tmp_path / "expert" / "learned_from.csv"}


def test_new_samples_pass(learned: dict[str, Path]) -> None:
    refuse_leaks([sample(3)], learned, same={"haiku": "target"})


@pytest.mark.parametrize(
    "leak",
    [
        sample(1),
        sample(9, source="INPUT 1"),
        sample(9, target="Target 2"),
    ],
)
def test_a_known_input_or_target_is_refused(learned: dict[str, Path], leak: Sample) -> None:
    with pytest.raises(
        LeakError, match="'LoRA haiku' has learned from 1 of the 2 test samples"
    ) as caught:
        refuse_leaks([sample(3), leak], learned, same={"haiku": "target"})
    assert leak.id in str(caught.value)
    assert "delete" in str(caught.value)


def test_answers_that_repeat_rightfully_are_no_leak(learned: dict[str, Path]) -> None:
    refuse_leaks([sample(9, target="target 1")], learned, same={"haiku": "pair"})
    with pytest.raises(LeakError):
        refuse_leaks([sample(1)], learned, same={"haiku": "pair"})


def test_a_model_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="left no record"):
        refuse_leaks([sample(3)], {"LoRA haiku": tmp_path / "none.csv"}, same={})


def test_a_record_tells_no_text(learned: dict[str, Path]) -> None:
    assert "target 1" not in learned["LoRA haiku"].read_text()
