"""The command line: fast help, results on standard output, errors in one clean message."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loramix.cli.main import cli


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from loramix.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_does_not_import_torch() -> None:
    code = "import sys; from loramix.cli.main import cli; import loramix; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "explain" in call("--help").stdout


@pytest.mark.parametrize("command", ["run", "recipes", "check", "generate", "explain", "env"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_errors_are_one_clean_message() -> None:
    result = call("run", "no-such-recipe")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no recipe 'no-such-recipe'")
    assert "Traceback" not in result.stderr


def test_recipes_are_listed() -> None:
    assert "haiku-title-t5-large" in CliRunner().invoke(cli, ["recipes"]).output


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_check_shows_settings_samples_and_sizes() -> None:
    result = CliRunner().invoke(cli, ["check", "tiny", "base.name=tiny-t5"])
    assert result.exit_code == 0, result.output
    for expected in ("masked, not learned", "write a haiku about", "parameters: base", "memory without activations"):
        assert expected in result.output


def test_generate_and_explain_answer_for_a_saved_mixture(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from loramix import MixtureModel
    from loramix.bases import load_base

    for name in ("a", "b"):
        base = load_base("tiny-llama").model
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / name)
    mixture = MixtureModel.from_experts("tiny-llama", {name: tmp_path / name for name in ("a", "b")})
    mixture.save_pretrained(tmp_path / "mix")
    result = CliRunner().invoke(cli, ["explain", str(tmp_path / "mix"), "some words"])
    assert "0.50" in result.output
    assert "mean" in result.output
    assert "model.layers.0.self_attn.q_proj" in result.output
    assert (
        CliRunner().invoke(cli, ["generate", str(tmp_path / "mix"), "some words", "--max-new-tokens", "3"]).exit_code
        == 0
    )
