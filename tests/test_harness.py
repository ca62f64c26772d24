"""lm-eval scores a mixture: at fixed weights as the adapter itself, with gates by the context."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import strengthen
from peft import LoraConfig, get_peft_model

from loramix import GateConfig, MixtureModel
from loramix.bases.loading import load_base
from loramix.errors import MixtureError

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed; get it with: pip install 'loramix[harness]'"
)
pytestmark = pytest.mark.filterwarnings("ignore")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from loramix.harness import MixtureLM, fixed_weights  # noqa: E402

TARGETS = {"tiny-llama": ["q_proj", "v_proj"], "tiny-gpt2": ["c_attn"], "tiny-t5": ["q", "v"]}
CHOICES = """
task: stones
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWERS = """
task: stones_written
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {max_gen_toks: 8, until: ["."]}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that saves a tiny base, two adapters and their mixture, and tells where."""
    made: dict[str, Path] = {}

    def of_base(name: str) -> Path:
        if name in made:
            return made[name]
        folder = made[name] = tmp_path_factory.mktemp(name)
        base = load_base(name)
        base.model.save_pretrained(folder / "base")
        base.tokenizer.save_pretrained(folder / "base")
        for seed, expert in enumerate("ab"):
            torch.manual_seed(seed)
            config = LoraConfig(
                target_modules=TARGETS[name],
                init_lora_weights=False,
                lora_alpha=32,
                fan_in_fan_out=name == "tiny-gpt2",
            )
            get_peft_model(load_base(name).model, config).save_pretrained(folder / expert)
        experts = {expert: folder / expert for expert in "ab"}
        gate = GateConfig(hidden=8)
        mixture = MixtureModel.from_experts(folder / "base", experts, gate=gate)
        strengthen(mixture).save_pretrained(folder / "mixture")
        return folder

    return of_base


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small task of choices and one of answers, and return their folder."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for index in range(12):
        stone = ("granite", "basalt", "chalk", "a flint of the north")[index % 4]
        question = f"Which stone is number {index}{', please' * (index % 3)}?"
        choices = [f" {stone}", " slate", " the marble of kings"]
        rows.append({"question": question, "choices": choices, "answer": index % 3})
    data = folder / "stones.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, task in (("stones", CHOICES), ("stones_written", ANSWERS)):
        (folder / f"{name}.yaml").write_text(task % data, encoding="utf-8")
    return folder


def evaluate(model: str, arguments: str, tasks: Path, **settings: object) -> dict[str, object]:
    """Return every sample's responses and the scores of both tasks."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["stones", "stones_written"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        **settings,
    )
    samples = {
        task: [row["filtered_resps"] for row in rows] for task, rows in found["samples"].items()
    }
    return {"samples": samples, "results": found["results"]}


@pytest.mark.parametrize("base", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_expert_alone_scores_as_its_adapter(
    make: Callable[[str], Path], tasks: Path, base: str, batch_size: int
) -> None:
    folder, said = make(base), {}
    for name in "ab":
        plain = f"pretrained={folder}/base,peft={folder}/{name}"
        mixed = f"pretrained={folder}/mixture,weights={name}"
        expected = evaluate("hf", plain, tasks, batch_size=batch_size)
        found = evaluate("loramix", mixed, tasks, batch_size=batch_size)
        assert found["results"] == expected["results"]
        said[name] = found["samples"]
        assert found["samples"]["stones_written"] == expected["samples"]["stones_written"]
        for row, right in zip(
            found["samples"]["stones"], expected["samples"]["stones"], strict=True
        ):
            assert [greedy for _, greedy in row] == [greedy for _, greedy in right]
            assert [score for score, _ in row] == pytest.approx(
                [score for score, _ in right], abs=1e-4
            )
    assert said["a"] != said["b"]


@pytest.mark.parametrize("base", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_gates_decide_from_the_context_alone(
    make: Callable[[str], Path], base: str, batch_size: int
) -> None:
    harness = MixtureLM(
        str(make(base) / "mixture"), device="cpu", batch_size=batch_size, max_length=24
    )
    asked = [
        ("red:", " a rose"),
        ("red:", " b"),
        ("red:", " c"),  # shares the pass of the one before
        ("red: ", "b"),  # as many tokens in all, but another context
        ("blue as the sea:", " sky"),
        ("cut from the left, as it is too long:", " a very blue sky"),
    ]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]
    found = harness.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (score, _) in zip(asked, found, strict=True):
        assert score == pytest.approx(alone(harness, context, continuation), abs=1e-4)


@torch.no_grad()
def alone(harness: MixtureLM, context: str, continuation: str) -> float:
    """Return the log-likelihood by the mixture itself, of one sample."""
    mixture = harness.model
    pair = harness._encode_pair(context, continuation)
    ids, target = (torch.tensor([tokens]) for tokens in pair)
    if harness.backend == "seq2seq":
        logits = mixture(input_ids=ids[:, -24:], labels=target).logits
    else:
        kept = torch.cat([ids, target], 1)[:, -25:]
        prompt = torch.ones_like(kept).bool()
        prompt[:, -target.shape[1] :] = False
        logits = mixture(input_ids=kept, prompt_mask=prompt).logits[:, -target.shape[1] - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, target[..., None]).sum())


def test_weights_are_read_from_the_command_line() -> None:
    assert fixed_weights(None, ["a", "b"]) is None
    assert fixed_weights("b", ["a", "b"]) == {"b": 1.0}
    assert fixed_weights("a:0.7+b:0.3", ["a", "b"]) == {"a": 0.7, "b": 0.3}
    assert fixed_weights("a:b", ["a:b", "c"]) == {"a:b": 1.0}
    assert fixed_weights({"a": 0.5}, ["a"]) == {"a": 0.5}
    with pytest.raises(MixtureError, match=r"a:0.7; the experts are \['a', 'b'\]"):
        fixed_weights("c", ["a", "b"])


def test_what_a_mixture_brings_itself_is_refused(make: Callable[[str], Path]) -> None:
    folder = make("tiny-llama")
    with pytest.raises(MixtureError, match="'peft' does not apply"):
        MixtureLM(str(folder / "mixture"), peft=str(folder / "a"))


def test_the_command_line_takes_a_mixture(make: Callable[[str], Path], tasks: Path) -> None:
    words = ["--model", "loramix", "--model_args", f"pretrained={make('tiny-llama')}/mixture"]
    words += ["--tasks", "stones", "--include_path", str(tasks), "--device", "cpu"]
    command = [sys.executable, "-m", "loramix.harness", *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "acc_norm" in shown
