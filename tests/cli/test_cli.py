"""The command line: fast help, results on standard output, errors in one clean message."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from loramix.cli.main import cli

Call = Callable[..., subprocess.CompletedProcess[str]]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which has nothing imported yet."""
    command = [sys.executable, "-m", "loramix", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from loramix.cli.main import cli; import loramix; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "explain" in process("--help").stdout


def test_errors_are_one_clean_message() -> None:
    result = process("run", "no-such-recipe")
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
    for expected in (
        "masked, not learned",
        "write a haiku about",
        "parameters: base",
        "memory without activations",
    ):
        assert expected in result.output


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_check_shows_the_format_and_a_row_of_every_reason(tmp_path: Path) -> None:
    rows = [{"prompt": f"word {n}", "completion": f"a\r\n  poem {n}"} for n in range(60)]
    rows += [{"prompt": "nobody", "completion": " "}, {"prompt": "cut \ud83d", "completion": "x y"}]
    rows += [{"prompt": "again", "completion": "A poem 3"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    limits = "max_input_tokens: 9, max_new_tokens: 11"
    recipe = tmp_path / "a.yaml"
    recipe.write_text(
        "name: a\nbase: {name: tiny-llama}\n"
        f"tasks: [{{name: poems, source: {tmp_path}/a.jsonl, {limits}}}]\n"
    )
    result = CliRunner().invoke(cli, ["check", str(recipe)])
    assert result.exit_code == 0, result.output
    for expected in (
        "poems: format prompt-completion (prompt, completion)",
        "63 read, 1 blank, 0 out_of_range, 1 duplicate, 0 surplus, 61 kept",
        "1 half_characters, 60 line_ends",
        r"blank, such as:  'nobody' -> ' '",
        r"duplicate, such as:  'again' -> 'A poem 3'",
        r"half characters, such as:  'cut \ud83d' -> 'x y'",
        r"line ends, such as:  'word 0' -> 'a\r\n  poem 0'",
        r"learned (11 tokens):  'a\n  poem ",
        "cut, of 61 samples: 0 inputs (max_input_tokens 9), 50 targets (max_new_tokens 11)",
    ):
        assert expected in result.output, result.output


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return saved_mixture(tmp_path, "tiny-llama")


def saved_mixture(folder: Path, base: str, **gate: object) -> Path:
    """Save a mixture of two adapters `a` and `b` over a shipped tiny model, and return its
    folder.
    """
    from peft import LoraConfig, get_peft_model

    from loramix import GateConfig, MixtureModel
    from loramix.bases.loading import load_base
    from loramix.config import Prompting

    target = "q_proj" if base == "tiny-llama" else "q"
    for name in ("a", "b"):
        model = get_peft_model(
            load_base(base).model, LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
        )
        model.save_pretrained(folder / name)
    experts = {name: folder / name for name in ("a", "b")}
    mixture = MixtureModel.from_experts(base, experts, gate=GateConfig(**gate))
    mixture.prompting = Prompting(templates={"poem": "write a poem about {input}"})
    mixture.save_pretrained(folder / "mix")
    return folder / "mix"


def test_generate_and_explain_answer_for_a_saved_mixture(call: Call, mixture: Path) -> None:
    result = CliRunner().invoke(cli, ["explain", str(mixture), "some words"])
    assert "all 2 layers" in result.output
    assert "0.50" in result.output
    plain = CliRunner().invoke(
        cli, ["generate", str(mixture), "write a poem about tea", "--max-new-tokens", "3"]
    )
    asked = CliRunner().invoke(
        cli, ["generate", str(mixture), "tea", "--task", "poem", "--max-new-tokens", "3"]
    )
    assert plain.exit_code == 0
    assert plain.output == asked.output
    assert (
        "'write a poem about tea'"
        in CliRunner().invoke(cli, ["explain", str(mixture), "tea", "--task", "poem"]).output
    )
    result = call("generate", str(mixture), "tea", "--task", "peom")
    assert result.stderr.startswith(
        "error: this mixture has no prompt for a task 'peom' (did you mean 'poem'?)"
    )


def test_explain_shows_every_decision_once(mixture: Path) -> None:
    from loramix import MixtureModel

    unequal = MixtureModel.from_pretrained(mixture)
    next(iter(unequal.gates.values())).score.bias.data[0] = 4.0
    unequal.save_pretrained(mixture)
    shown = CliRunner().invoke(cli, ["explain", str(mixture), "some words"]).output
    for layer, weight in (("layers.0.self_attn.q_proj", 0.98), ("layers.1.self_attn.q_proj", 0.5)):
        assert re.search(rf"{layer} +│ {weight:.2f}", shown), shown
    assert re.search(r"mean +│ 0\.74", shown), shown


def test_the_base_is_loaded_in_the_number_format_asked_for(call: Call, mixture: Path) -> None:
    import torch

    from loramix import MixtureModel

    assert MixtureModel.from_pretrained(mixture).base.dtype == torch.float32
    for base in (None, "tiny-llama"):
        assert (
            MixtureModel.from_pretrained(mixture, base, dtype="bfloat16").base.dtype
            == torch.bfloat16
        )
    for command in (["generate", "--max-new-tokens", "3"], ["explain"]):
        asked = CliRunner().invoke(cli, [*command, str(mixture), "tea", "--dtype", "bfloat16"])
        assert asked.exit_code == 0, asked.output
    wrong = call("generate", str(mixture), "tea", "--dtype", "bfloat61")
    assert wrong.stderr.startswith("error: no number format 'bfloat61' (did you mean 'bfloat16'?)")


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-t5"])
def test_explain_shows_every_token_of_a_token_gate(tmp_path: Path, base: str) -> None:
    mixture, page = saved_mixture(tmp_path, base, context="token"), tmp_path / "page.html"
    asked = ["explain", str(mixture), "<b>tea & milk</b>"]
    picture = tmp_path / "picture.svg"
    result = CliRunner().invoke(cli, [*asked, "--html", str(page), "--svg", str(picture)])
    assert result.exit_code == 0, result.output
    tokens = re.findall(r"^│ '(.+?)' +│ \d", result.output, re.MULTILINE)
    assert "".join(tokens).startswith("<b>tea & milk</b>"), result.output
    html = page.read_text()
    assert "&lt;b&gt;tea &amp; milk&lt;/b&gt;" in html
    assert "<b>tea" not in html
    assert html.count('style="--share:') > 3
    assert html.count('class="bar') >= 2 * 2
    assert "&lt;b&gt;tea &amp; milk&lt;/b&gt;" in picture.read_text()


def test_export_writes_an_adapter_or_a_model(call: Call, mixture: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loramix.bases.loading import load_base

    out = tmp_path / "adapter"
    result = CliRunner().invoke(
        cli, ["export", str(mixture), str(out), "--weight", "a=0.7", "--weight", "b=0.3"]
    )
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    PeftModel.from_pretrained(load_base("tiny-llama").model, out)
    merged = tmp_path / "model"
    command = ["export", str(mixture), str(merged), "--prompt", "tea", "--task", "poem", "--merged"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    AutoModelForCausalLM.from_pretrained(merged)
    assert AutoTokenizer.from_pretrained(merged)("tea").input_ids
    for wrong, message in (
        ([], "needs either"),
        (["--weight", "a"], "write EXPERT=VALUE"),
        (["--weight", "z=1"], "no expert 'z'"),
    ):
        result = call("export", str(mixture), str(tmp_path / "no"), *wrong)
        assert result.returncode == 1
        assert message in result.stderr


def test_export_never_replaces_what_it_did_not_write(
    call: Call, mixture: Path, tmp_path: Path
) -> None:
    result = call("export", str(mixture), str(tmp_path), "--weight", "a=1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert (tmp_path / "a" / "adapter_config.json").is_file()


def test_import_reads_the_reference(call: Call, tmp_path: Path) -> None:
    import torch

    layer = "encoder.block.0.layer.0.SelfAttention.q"
    from loramix.bases.loading import load_base

    linear = load_base("tiny-t5").model.get_submodule(layer)
    for name in ("a", "b"):
        state = {
            f"{layer}.lora_A": torch.randn(2, linear.in_features),
            f"{layer}.lora_B": torch.randn(linear.out_features, 2),
        }
        torch.save(state, tmp_path / f"{name}.pt")
    gates = {
        f"{layer}.context_gated_mixing.lin1.weight": torch.randn(4, linear.in_features),
        f"{layer}.context_gated_mixing.output.weight": torch.randn(2, 4),
    }
    torch.save(gates, tmp_path / "gates.pt")
    out = tmp_path / "mixture"
    experts = [part for name in ("a", "b") for part in ("--expert", f"{name}={tmp_path / name}.pt")]
    command = [
        "import",
        "loralib",
        str(out),
        "--base",
        "tiny-t5",
        *experts,
        "--gates",
        str(tmp_path / "gates.pt"),
    ]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "0." in CliRunner().invoke(cli, ["explain", str(out), "some words"]).output
    command[6] = "a"
    assert "write NAME=FILE" in call(*command).stderr
