"""The comparison on a tiny model: who is asked what, what is left, what is done once, and what is
refused.
"""

import csv
import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from loramix.cli.main import cli
from loramix.comparison.asking import SCORES, routing_rows
from loramix.comparison.baselines import cat, retriever, static, xlora
from loramix.comparison.baselines.shared import read_weights, untrained_mixture
from loramix.comparison.compare import compare
from loramix.comparison.comparison import Comparison
from loramix.comparison.models import compared_models
from loramix.comparison.rescoring import current_scores
from loramix.comparison.testsets import Question, asked_task, questions, read_questions
from loramix.config import GateConfig
from loramix.data.leaks import RECORD, record
from loramix.errors import LeakError, RecipeError
from loramix.experiment.answers import encode_all
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import Recipe, TestSet
from loramix.experiment.run import Run
from loramix.metrics.measures import COMBINED
from loramix.metrics.words import TOKENIZER
from loramix.mixture.routing_measures import entropy
from loramix.mixture.state import recording
from loramix.storage.files import write_csv

SETTINGS = [
    *("name=small", "samples=80", "finetune.epochs=1", "lora.epochs=1", "gate.epochs=1"),
    *("comparison.test_samples=4", "comparison.side_samples=3", "comparison.uncached_samples=2"),
    *("comparison.search_samples=2", "comparison.search_steps=6", "comparison.replicates=100"),
    *("comparison.seeds=[0, 1]", "comparison.test_sets=[named, bare, mixed]", "gate.bare=0.5"),
    *("tasks.haiku.max_new_tokens=5", "tasks.title.max_new_tokens=5"),
    *("finetune.train_samples=8", "lora.train_samples=8", "gate.train_samples=8"),
    *(f"{stage}.validation_samples=2" for stage in ("finetune", "lora", "gate")),
]
pytestmark = [
    pytest.mark.axes(False),  # smaller tests check them
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
    ),
]
LABELS = [
    *("base", "full finetune", "LoRA haiku", "LoRA title", "one LoRA, all tasks"),
    *("small LoRA, all tasks", "uniform weights", "best static weights", "CAT", "TIES"),
    *("DARE", "LoraHub", "Arrow", "X-LoRA", "retriever"),
    *("CGM LoRA", "reference gate", "oracle"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare") / "run"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("tiny", SETTINGS)


@pytest.fixture(scope="module")
def folder(recipe: Recipe, root: Path, without_plots: None) -> Path:
    return compare(recipe, root)


def test_every_model_is_scored_in_one_schema(folder: Path) -> None:
    results = rows(folder / "results.csv")
    columns = "recipe,seed,model,task,test_set,measure,value,low,high,n,tokenizer"
    assert ",".join(results[0]) == columns
    assert list(dict.fromkeys(row["model"] for row in results)) == LABELS
    assert {row["recipe"] for row in results} == {"small"}
    assert {row["test_set"] for row in results} == {"named", "bare", "mixed"}
    mixture = [row for row in results if row["model"] == "CGM LoRA" and row["task"] == "haiku"]
    assert {row["seed"] for row in mixture} == {"0", "1", "all"}


def test_intervals_hold_their_values(folder: Path) -> None:
    for row in rows(folder / "results.csv"):
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) + 1e-6
            assert float(row["value"]) <= float(row["high"]) + 1e-6


def test_a_task_is_measured_by_what_it_asks_for_and_has_a_reference_for(folder: Path) -> None:
    results = rows(folder / "results.csv")
    haikus = [row for row in results if row["test_set"] == "named" and row["task"] == "haiku"]
    against_references = {"rougeL", "bertscore", "perplexity", "combined"}
    of_texts = {"poem_575", "keyword_use", "distinct2", "cut"}
    assert against_references | of_texts <= {row["measure"] for row in haikus}
    without = {row["measure"] for row in results if row["test_set"] == "mixed"}
    assert "poem_575" in without
    assert not without & {"rougeL", "loss", "combined"}, "there is no reference to compare with"


def test_the_oracle_is_the_own_expert(folder: Path) -> None:
    def of(model: str, task: str) -> list[tuple[str, ...]]:
        return [
            (row["test_set"], row["measure"], row["value"])
            for row in rows(folder / "results.csv")
            if (row["model"], row["task"]) == (model, task)
        ]

    assert of("oracle", "title") == of("LoRA title", "title")
    assert of("oracle", "haiku") == of("LoRA haiku", "haiku")


def test_differences_are_those_of_the_values(folder: Path) -> None:
    value = {
        (row["model"], row["task"], row["test_set"], row["measure"]): float(row["value"])
        for row in rows(folder / "results.csv")
    }
    found = rows(folder / "differences.csv")
    assert {row["model"] for row in found} == {"CGM LoRA", "reference gate"}
    for row in found:
        asked = row["task"], row["test_set"], row["measure"]
        if row["against"] != "X-LoRA":  # it is paired on the samples that it answered
            gap = value[row["model"], *asked] - value[row["against"], *asked]
            assert float(row["difference"]) == pytest.approx(gap, abs=2e-5)
        assert int(row["above"]) + int(row["same"]) + int(row["below"]) == int(row["n"])


def test_a_model_without_a_cache_answers_fewer_and_is_paired_on_those(folder: Path) -> None:
    results = {
        (row["measure"], row["model"]): int(row["n"])
        for row in rows(folder / "results.csv")
        if row["task"] == "haiku" and row["test_set"] == "named" and row["seed"] in ("0", "all")
    }
    assert results["rougeL", "X-LoRA"] == 2
    assert results["loss", "X-LoRA"] == 4
    paired = [
        int(row["n"])
        for row in rows(folder / "differences.csv")
        if (row["against"], row["test_set"], row["task"], row["measure"])
        == ("X-LoRA", "named", "haiku", "rougeL")
    ]
    assert set(paired) == {2}


def test_routing_is_reported_by_layer_and_projection(folder: Path) -> None:
    routing = [row for row in rows(folder / "routing.csv") if row["test_set"] == "named"]
    assert {row["projection"] for row in routing} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {(row["model"], row["seed"]) for row in routing} == {
        *(("CGM LoRA", seed) for seed in "01"),
        *(("reference gate", seed) for seed in "01"),
    }
    for row in routing:
        assert 0 <= float(row["entropy"]) <= 0.6932
        assert 0.5 - 1e-4 <= float(row["concentration"]) <= 1 + 1e-4
    steps = rows(folder / "CGM-LoRA-seed0" / "routing_steps.csv")
    tasks = ("haiku", "title")
    assert {(row["task"], row["expert"]) for row in steps} == set(product(tasks, tasks))


def test_the_report_shows_every_model_and_the_verdict(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert all(label in page for label in LABELS)
    assert "On haiku, CGM LoRA is not worse than the right expert" in page
    assert len(json.loads((folder / "results.json").read_text())["verdict"]) == 2 + 14 + 1


@pytest.mark.parametrize("empty", ["mixtures={}", "seeds=[]", "test_sets=[]"])
def test_a_comparison_of_nothing_is_refused(empty: str) -> None:
    with pytest.raises(RecipeError, match=f"comparison.{empty.partition('=')[0]}.* at least 1"):
        load_recipe("tiny", [f"comparison.{empty}"])


def test_a_second_comparison_does_nothing_and_other_questions_need_no_training(
    recipe: Recipe, root: Path, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)

    def stamps() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (copy / ".stages").glob("*.json")}

    before = stamps()
    compare(recipe, copy)
    assert stamps() == before
    compare(load_recipe("tiny", [*SETTINGS, "comparison.replicates=101"]), copy)
    after = stamps()
    redone = {key for key in after if after[key] != before[key]}
    assert redone == {"compare-small-results", "compare-small-report"}


def test_the_command_prints_the_verdict_and_a_table(root: Path, folder: Path) -> None:
    result = CliRunner().invoke(cli, ["compare", "tiny", *SETTINGS, "--out", str(root)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{folder}\n")
    assert "On haiku, CGM LoRA is not worse than the right expert" in " ".join(
        result.stdout.split()
    )
    for label in LABELS:
        assert f"\n  {label} " in result.stdout


@pytest.mark.slow
def test_another_comparison_in_the_same_folder_uses_the_same_experts(
    root: Path, folder: Path
) -> None:
    before = adapter_times(root)
    chosen = [
        "comparison.models=[base, experts, oracle, mixtures]",
        "comparison.mixtures={wide: {hidden: 16}}",
        "comparison.seeds=[0]",
    ]
    sets = [str(name) for name in get_args(TestSet)]
    chosen.append(f"comparison.test_sets={sets}")
    second = compare(load_recipe("tiny", [*SETTINGS, "name=other", *chosen]), root)
    assert adapter_times(root) == before
    assert {row["test_set"] for row in rows(second / "results.csv")} == set(sets)
    compared = {row["model"] for row in rows(second / "results.csv")}
    assert compared == {"base", "LoRA haiku", "LoRA title", "oracle", "wide"}


def test_scores_of_earlier_versions_are_measured_anew_from_the_answers(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    """The files of such a version have no tokenizer, and other words."""
    file = folder / "base" / "named" / SCORES
    current = rows(file)
    earlier = [{**row, "rougeL": "0.9", "words": "77", "combined": "0.9"} for row in current]
    columns = [column for column in current[0] if column != "tokenizer"]
    kept = file.read_text()
    write_csv(file, columns, [[row[column] for column in columns] for row in earlier])
    try:
        found = current_scores(recipe, "named", file.parent)
    finally:
        file.write_text(kept)
    assert [{key: row[key] for key in current[0]} for row in found] == current
    assert current_scores(recipe, "named", file.parent) == current


def test_answers_without_references_and_to_fewer_questions_are_measured_anew(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    for test_set, model in (("mixed", "base"), ("bare", "base"), ("named", "xlora")):
        file = next(folder.glob(f"{model}*/{test_set}/{SCORES}"))
        current = rows(file)
        assert {row["tokenizer"] for row in current} == {TOKENIZER}
        kept = file.read_text()
        file.write_text(kept.replace(TOKENIZER, "words of old"))
        try:
            assert current_scores(recipe, test_set, file.parent) == current  # type: ignore[arg-type]
        finally:
            file.write_text(kept)


def test_results_say_what_split_the_texts(folder: Path) -> None:
    for name in ("results.csv", "differences.csv"):
        found = {row["measure"]: row["tokenizer"] for row in rows(folder / name)}
        assert found["rouge1"] == found["keyword_use"] == TOKENIZER
        assert found["loss"] == found["bertscore"] == ""
    assert TOKENIZER in (folder / "report.html").read_text()


def adapter_times(root: Path) -> list[int]:
    files = root.glob("lora/*/models/adapter_model.safetensors")
    return [file.stat().st_mtime_ns for file in files]


def test_a_comparison_refuses_models_that_know_the_test(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    """Put a test sample's row into an expert's record: the models made of that expert are refused
    by name.
    """
    path = root / "lora" / "haiku" / RECORD
    kept = path.read_text()
    test = Run(recipe, root).manifest.of(recipe.tasks[0], "test")[0]
    record(path, [replace(test, split="train")])
    try:
        marker = root / ".stages" / "compare-small-uniform-named.json"
        marker.unlink()
        with pytest.raises(
            LeakError, match=r"'uniform weights \(haiku\)' has learned from 1 of the"
        ):
            compare(recipe, root)
    finally:
        path.write_text(kept)
    compare(recipe, root)


def test_questions_ask_withheld_samples_in_several_ways(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    assert read_questions(folder / "questions.csv") == questions(Run(recipe, root))
    spec = recipe.comparison.model_copy(update={"test_sets": get_args(TestSet)})
    asked = questions(Run(recipe, root).changed(comparison=spec))
    withheld = {
        sample.id: sample for sample in Run(recipe, root).manifest if sample.split == "test"
    }
    assert all(question.id in withheld for question in asked)
    by_set: dict[str, list[Question]] = {}
    for question in asked:
        by_set.setdefault(question.test_set, []).append(question)
    assert {each.prompt for each in by_set["bare"]} == {"{input}"}
    assert [each.id for each in by_set["bare"]] == [each.id for each in by_set["named"]]
    own = {task.name: task for task in recipe.tasks}
    assert all(each.prompt in own[each.task].paraphrases for each in by_set["paraphrased"])
    assert {(each.task, withheld[each.id].task) for each in by_set["mixed"]} == {("haiku", "title")}
    assert all(each.reference == "" for each in by_set["mixed"])
    for each in by_set["unknown"]:
        assert (each.input, each.reference) == (withheld[each.id].target, withheld[each.id].input)
        assert asked_task(recipe, each).prompt == own["haiku"].inverse
        assert asked_task(recipe, each).name == "haiku-inverse"


def test_the_best_static_weights_are_the_best_that_were_tried(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    tried = rows(folder / "static" / "tried.csv")
    assert len(tried) == 25
    best = min(tried, key=lambda row: float(row["loss"]))
    assert read_weights(folder / "static") == {
        name: float(best[name]) for name in ("haiku", "title")
    }
    assert len(rows(folder / "lorahub" / "tried.csv")) >= 6


def test_weights_that_are_learned_differ_by_layer_and_are_loaded_as_they_were(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    run = Run(recipe, root)
    learned = load_file(folder / "cat" / "weights.safetensors")
    with cat.BASELINE.load(run, folder / "cat", run.load_base()) as mixture:
        used = mixture.weights(input_ids=torch.arange(5, 15)[None])
        assert used.keys() == learned.keys() == mixture.layers.keys()
        for layer, weights in used.items():
            torch.testing.assert_close(weights[0], learned[layer])
    rows_of_layers = torch.stack(list(learned.values()))
    assert float((rows_of_layers - 0.5).abs().max()) > 1e-4, "nothing was learned"
    assert len(rows_of_layers.unique(dim=0)) > 1


def test_of_many_experts_static_weights_are_learned(recipe: Recipe) -> None:
    tasks = tuple(recipe.tasks[0].model_copy(update={"name": f"t{i}"}) for i in range(4))
    many = recipe.model_copy(update={"tasks": tasks})
    assert "weights.safetensors" in static.BASELINE.leaves_of(many)
    assert "tried.csv" in static.BASELINE.leaves_of(recipe)


def test_the_retriever_gives_a_prompt_to_one_expert(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    run = Run(recipe, root)
    with retriever.BASELINE.load(run, folder / "retriever", run.load_base()) as model:
        tokenizer, read, found = run.load_base().tokenizer, [], []
        for task in recipe.tasks:
            ids = tokenizer(task.render("rain and snow"), return_tensors="pt").input_ids
            read.append(tokenizer.decode(ids[0], skip_special_tokens=True))
            with recording() as used, torch.no_grad():
                answer = torch.full((1, 3), 7)
                whole = torch.cat([ids, answer], 1)
                labels = torch.cat([torch.full_like(ids, -100), answer], 1)
                model(input_ids=whole, attention_mask=torch.ones_like(whole), labels=labels)
            weights = torch.stack([each.row_mean[0] for each in used.values()])
            assert len(weights.unique(dim=0)) == 1, "one choice for all layers"
            assert sorted(weights[0].tolist()) == [0.0, 1.0]
            found.append(int(weights[0].argmax()))
            tokens = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0
            )
            assert tokens.shape[1] >= ids.shape[1] + 1
    prototypes = load_file(folder / "retriever" / "prototypes.safetensors")
    embedded = model.encoder.embed(read)
    places = torch.stack([prototypes[name] for name in recipe.expert_names])
    nearest = torch.cosine_similarity(embedded[:, None], places[None], dim=-1).argmax(1)
    assert found == nearest.tolist()


def test_crossed_questions_ask_for_every_task_about_inputs_of_the_others(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    spec = recipe.comparison.model_copy(update={"test_sets": ("crossed",)})
    asked = questions(Run(recipe, root).changed(comparison=spec))
    task_of = {sample.id: sample.task for sample in Run(recipe, root).manifest}
    assert {(each.task, task_of[each.id]) for each in asked} == {
        ("haiku", "title"),
        ("title", "haiku"),
    }
    assert {each.reference for each in asked} == {""}
    assert all(asked_task(recipe, each).render(each.input) for each in asked)


def test_the_oracle_alone_asks_every_expert_its_own_task(recipe: Recipe, root: Path) -> None:
    spec = recipe.comparison.model_copy(update={"models": ("base", "oracle")})
    models, _ = compared_models(Comparison(Run(recipe, root).changed(comparison=spec)))
    assert [(model.row, model.asks) for model in models] == [
        ("base", None),
        ("oracle", ("haiku",)),
        ("oracle", ("title",)),
    ]


def test_x_loras_classifier_is_kept(recipe: Recipe, root: Path, folder: Path) -> None:
    """PEFT's own saving loses it; here, what is loaded is what was trained."""
    run, ids = Run(recipe, root), torch.arange(5, 15)[None]
    with xlora.load(run, folder / "xlora", run.load_base()) as one, torch.no_grad():
        trained = one(input_ids=ids).logits
    with xlora.load(run, folder / "xlora", run.load_base()) as two, torch.no_grad():
        torch.testing.assert_close(two(input_ids=ids).logits, trained)
    with torch.no_grad():
        fresh = xlora.untrained(run, run.load_base())
        assert not torch.allclose(fresh(input_ids=ids).logits, trained)


def test_weights_of_one_input_can_be_held_for_another(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    run = Run(recipe, root)
    mixture = untrained_mixture(run, run.load_base(), GateConfig()).eval()
    for gate in mixture.gates.values():
        torch.nn.init.normal_(
            gate.score.weight, std=3.0, generator=torch.Generator().manual_seed(1)
        )
    first, second = torch.arange(5, 15)[None], torch.arange(40, 60)[None]
    weights = mixture.weights(input_ids=first)
    with mixture.fixed_layers(weights):
        held = mixture.weights(input_ids=second)
    for layer, weights_BE in weights.items():
        torch.testing.assert_close(held[layer], weights_BE)
    with pytest.raises(Exception, match="missing"), mixture.fixed_layers({}):
        pass


def test_the_entropy_of_weights_is_that_of_training(
    recipe: Recipe, root: Path, folder: Path
) -> None:
    """Of shares: 0.637 nats for weights of 0.2 and 0.1, and not 0.552; Σw² is of the weights."""
    run = Run(recipe, root)
    base, asked = run.load_base(), [(recipe.tasks[0], "rain", None)]
    mixture = untrained_mixture(run, base, GateConfig()).eval()
    encoded = encode_all(mixture, base.tokenizer, recipe, asked)
    with mixture.fixed({"haiku": 0.2, "title": 0.1}):
        found = routing_rows(mixture, base, recipe, encoded, "haiku")
    assert {row[2:] for row in found} == {
        ("haiku", 0.2, 0.636514, 0.05),
        ("title", 0.1, 0.636514, 0.05),
    }
    in_training = entropy(torch.tensor([[[0.2, 0.1]]])).mean()
    assert float(in_training) == pytest.approx(0.636514, abs=1e-6)


def test_the_combined_score_is_the_mean_of_what_its_label_names(folder: Path) -> None:
    for row in rows(folder / "base" / "named" / "scores.csv"):
        parts = [float(row[name]) for name in COMBINED if row.get(name)]
        assert len(parts) == 3, "ROUGE-L, BERTScore and probability, of these tasks"
        assert float(row["combined"]) == pytest.approx(sum(parts) / 3, abs=1e-6)
