"""Chats, code and Japanese through whole runs: what people have reaches the answers as it is."""

import csv
import json
from pathlib import Path

import pytest

from loramix import MixtureModel
from loramix.bases.tiny import tiny_model, tiny_tokenizer
from loramix.data.conversations import Conversation
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SMALL = [
    *("finetune.epochs=1", "lora.epochs=1", "gate.epochs=1", "gate.init=zero", "lora.rank=2"),
    *("finetune.train_samples=4", "lora.train_samples=4", "gate.train_samples=4"),
    *("finetune.validation_samples=2", "lora.validation_samples=2", "gate.validation_samples=2"),
    *("generation.test_samples=3", "evaluation.encoder=tiny-bert"),
]
LIMITS = {"max_input_tokens": 200, "max_new_tokens": 24, "metrics": ["rouge"]}
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer("tiny-llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_model("tiny-llama").save_pretrained(folder)
    return folder


def task(folder: Path, name: str, rows: list[dict[str, object]]) -> dict[str, object]:
    """Write a task's rows, and return it as a recipe has it."""
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {"name": name, "source": str(path), **LIMITS}


def chats(count: int) -> list[dict[str, object]]:
    rows = []
    for number in range(count):
        asked = {"role": "user", "content": f"How many is\n  {number}?"}
        rows.append([asked, {"role": "assistant", "content": f"As many as\n  {number}."}])
        rows[-1] += [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "So."}]
    return [{"messages": row} for row in rows]


def functions(count: int) -> list[dict[str, object]]:
    return [
        {
            "instruction": "Complete it.",
            "input": f"def add_{number}(x):",
            "output": f"def add_{number}(x):\n    if x:\n\treturn x +  {number}\n\n    return 0\n",
        }
        for number in range(count)
    ]


def greetings(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"{n}番の花は？", "completion": f"桜が{n}本\u3000咲く"} for n in range(count)
    ]


def run(folder: Path, base: object, tasks: list[dict[str, object]], *, chat: bool) -> Path:
    recipe = {"name": "a", "base": {"name": str(base), "chat": chat}, "tasks": tasks}
    (folder / "a.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    runner.run(load_recipe(str(folder / "a.yaml"), SMALL), folder / "run")
    return folder / "run"


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_chat_and_code_go_through_a_run_on_a_chat_base(tmp_path: Path, chat_base: Path) -> None:
    tasks = [task(tmp_path, "chat", chats(30)), task(tmp_path, "code", functions(40))]
    root = run(tmp_path, chat_base, tasks, chat=True)
    asked = answers(root / "cgm" / "chat.csv")
    assert len(asked) == 3
    for row in asked:
        messages = Conversation.from_text(row["input"]).messages
        number = str(messages[0]["content"]).split()[-1].removesuffix("?")
        first = f"As many as\n  {number}."
        assert messages[0]["content"] == f"How many is\n  {number}?"
        assert row["reference"] == (first if len(messages) == 1 else "So.")
    assert {row["reference"] for row in answers(root / "lora" / "chat" / "code.csv")} <= {
        row["output"] for row in functions(40)
    }
    assert "chat" in (root / "report.html").read_text(encoding="utf-8")
    assert MixtureModel.from_pretrained(root / "cgm" / "models").expert_names == ["chat", "code"]


@pytest.mark.slow
def test_code_and_japanese_reach_the_answers_as_they_are(tmp_path: Path) -> None:
    tasks = [task(tmp_path, "code", functions(40)), task(tmp_path, "flowers", greetings(40))]
    root = run(tmp_path, "tiny-llama", tasks, chat=False)
    code = {(f"{row['instruction']}\n\n{row['input']}", row["output"]) for row in functions(40)}
    flowers = {(row["prompt"], row["completion"]) for row in greetings(40)}
    for folder in ("benchmark", "cgm", "lora/code", "lora/flowers"):
        for name, known in (("code", code), ("flowers", flowers)):
            found = answers(root / folder / f"{name}.csv")
            assert len(found) == 3
            assert {(row["input"], row["reference"]) for row in found} <= known
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "本\u3000咲く" in page
    assert "    if x:\n\treturn x +  " in page
