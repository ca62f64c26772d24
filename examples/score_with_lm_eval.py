"""Score a mixture with lm-eval: with its gates, and with one expert alone.

    pip install 'loramix[harness]'
    python examples/score_with_lm_eval.py

Two adapters of a tiny random model and a task of two questions, which need no download, stand for
yours. For a task of lm-eval's own, leave out --include_path:

    python -m loramix.harness --model loramix --model_args pretrained=my-mixture --tasks arc_easy
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import LoraConfig

from loramix import MixtureModel
from loramix.bases.loading import load_base

BASE = "tiny-llama"  # or a folder, or a Hub id
QUESTIONS = [
    {"question": "The stone is", "choices": [" hard.", " a bird."], "answer": 0},
    {"question": "The wren is", "choices": [" hard.", " a bird."], "answer": 1},
]
TASK = """
task: stones
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


def main(folder: Path) -> None:
    """Make and score a mixture; all files go to `folder`."""
    adapters = {name: save_adapter(folder / name) for name in ("haiku", "title")}
    mixture, tasks = folder / "my-mixture", folder / "tasks"
    MixtureModel.from_experts(BASE, adapters).save_pretrained(mixture)
    tasks.mkdir()
    rows = tasks / "stones.jsonl"
    rows.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    (tasks / "stones.yaml").write_text(TASK % rows, encoding="utf-8")
    for weights in ("", ",weights=haiku"):
        words = ["--model", "loramix", "--model_args", f"pretrained={mixture}{weights}"]
        words += ["--tasks", "stones", "--include_path", str(tasks), "--device", "cpu"]
        if subprocess.run([sys.executable, "-m", "loramix.harness", *words]).returncode:
            sys.exit(1)  # it has said why


def save_adapter(folder: Path) -> Path:
    """Save an adapter with random weights."""
    model = load_base(BASE).model
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
