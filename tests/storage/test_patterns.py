"""Patterns of strangers come to an end, or are refused."""

from pathlib import Path

import pytest
from conftest import save_expert, tiny_model

from loramix import MixtureModel
from loramix.errors import ExpertError
from loramix.storage import patterns
from loramix.storage.patterns import check_patterns

NAMES = [f"model.layers.{index}.self_attn.q_proj" for index in range(30)]


def test_honest_patterns_pass() -> None:
    check_patterns("a", ["q_proj", r".*self_attn\.(q|k)_proj", r"layers\.[0-3]\.x", "^q"], NAMES)


@pytest.mark.parametrize("pattern", ["((.*)*)*x", "(q_proj|(.|_)+)+!", "(.*){1,99}(.*){1,99}x"])
def test_patterns_that_never_end_are_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.2)
    with pytest.raises(ExpertError, match="do not come to an end"):
        check_patterns("a", [pattern], ["q_proj_" * 20])


@pytest.mark.parametrize("pattern", ["[", "(", "*", "(?P<idx>a)", "a{2,1}"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ExpertError, match="is no pattern"):
        check_patterns("a", [pattern], NAMES)


@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern", "target_modules"])
def test_all_settings_that_hold_patterns_are_tried(
    setting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.2)
    folder = save_expert(tmp_path / "a", "llama", seed=1)
    file = folder / "adapter_config.json"
    never = '"(.|(.*)*)*!"'
    value = never if setting == "target_modules" else f"{{{never}: 4}}"
    content = file.read_text().rstrip().rstrip("}") + f', "{setting}": {value}}}'
    file.write_text(content)  # the last of two settings counts
    with pytest.raises(ExpertError, match="do not come to an end"):
        MixtureModel.from_experts(tiny_model("llama"), {"a": folder})
