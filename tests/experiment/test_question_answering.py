"""The companion experiment: three question-answering experts on an encoder-decoder, from files of
the Hub's layout.
"""

import csv
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from loramix import MixtureModel
from loramix.comparison.compare import compare
from loramix.experiment import runner
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
TASKS = ("commonsense-qa", "medqa", "science-qa")
SETTINGS = [
    *(
        "base.name=tiny-t5",
        "samples=70",
        "finetune.epochs=1",
        "lora.epochs=1",
        "gate.epochs=1",
        "gate.hidden=6",
    ),
    *("lora.rank=4", "gate.train_samples=8", "gate.validation_samples=2", "lora.train_samples=16"),
    *("finetune.train_samples=8", "generation.test_samples=3", "evaluation.encoder=tiny-bert"),
    *("comparison.test_samples=3", "comparison.side_samples=2", "comparison.search_samples=1"),
    *("comparison.seeds=[0]", "comparison.replicates=100", "comparison.search_steps=4"),
]


def question(number: int, task: str) -> dict[str, object]:
    texts = [f"{word} {number}" for word in ("stone", "river", "cloud", "field")]
    right = number % 4
    asked = f"Which of these is thing {number} of {task}?"
    if task == "commonsense-qa":
        return {
            "question": asked,
            "choices": {"label": list("ABCD"), "text": texts},
            "answerKey": "ABCD"[right],
        }
    if task == "medqa":
        options = dict(zip("ABCD", texts, strict=True))
        return {
            "question": asked,
            "options": options,
            "answer_idx": "ABCD"[right],
            "answer": texts[right],
        }
    return {"question": asked, "choices": texts, "answer": right, "image": None}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    sources = []
    for task in TASKS:
        rows = [question(number, task) for number in range(80)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{task}.parquet")
        sources += [
            f"tasks.{task}.source={folder / f'{task}.parquet'}",
            f"tasks.{task}.max_input_tokens=128",
        ]
    return load_recipe("qa-t5-base", [*SETTINGS, *sources])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_three_experts_go_through_all_experiments(recipe: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "run"
    runner.run(recipe, root)
    accuracy = rows(root / "accuracy.csv")
    assert list(accuracy[0]) == [
        "model",
        *(f"{task} {name}" for task in TASKS for name in ("exact match", "BLEU")),
        "BLEU signature",
    ]
    models = ["base", "full finetune", *(f"LoRA {task}" for task in TASKS), "CGM LoRA"]
    assert [row["model"] for row in accuracy] == models
    assert all(
        0 <= float(row[column]) <= 1
        for row in accuracy
        for column in row
        if column not in ("model", "BLEU signature")
    )
    assert not (root / "rouge.csv").exists()
    asked = rows(root / "benchmark" / "medqa.csv")[0]
    assert r"\n (A) stone" in asked["input"]
    assert asked["reference"].split()[0] in ("stone", "river", "cloud", "field")
    mixture = MixtureModel.from_pretrained(root / "cgm" / "models")
    assert mixture.expert_names == list(TASKS)
    assert "Accuracy" in (root / "report.html").read_text()
    folder = compare(recipe, root)
    results = rows(folder / "results.csv")
    measured = {
        row["measure"] for row in results if (row["task"], row["test_set"]) == ("medqa", "named")
    }
    assert {"exact_match", "bleu", "perplexity", "combined", "cut"} <= measured
    assert not measured & {"rougeL", "bertscore", "poem_575"}
    labels = {row["model"] for row in results}
    assert {"oracle", "TIES", "Arrow", "LoraHub", "CGM LoRA", "reference gate"} <= labels
    assert "X-LoRA" not in labels
    assert "does not load adapters of t5 models" in (folder / "report.html").read_text()
