"""The steps of a comparison: those of the run that it needs, then fits, questions to every model,
results, report.
"""

from collections.abc import Mapping
from functools import partial

from loramix.comparison import asking, report, results, testsets
from loramix.comparison.contenders import Contender, Place, contenders
from loramix.comparison.scores import read_scores
from loramix.data.samples import read_manifest
from loramix.experiment.graph import METRIC_KEYS, PROMPT_KEYS, Node, Settings, graph, part
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout

QUESTIONS = "questions.csv"


def comparison_graph(recipe: Recipe, layout: Layout, sources: Mapping[str, str]) -> list[Node]:
    """Return the comparison's nodes, each after those it needs."""
    place, (models, left_out) = Place(recipe, layout), contenders(recipe, layout)
    shared = [
        node
        for node in graph(recipe, layout, sources)
        if node.stage in ("prepare", "finetune", "lora")
    ]
    fits = [node for model in models for node in model.fits]
    sets = recipe.comparison.test_sets
    asked = [_ask(place, model, test_set) for model in models for test_set in model.asked(sets)]
    last = [_results(place, models, [node.key for node in asked]), _report(place, models, left_out)]
    return [*shared, *fits, _questions(place), *asked, *last]


def _questions(place: Place) -> Node:
    recipe = place.recipe
    keys = {"test_sets", "test_samples", "side_samples"}
    settings: Settings = {
        "test sets": recipe.comparison.model_dump(mode="json", include=keys),
        "prompts": part(recipe.tasks, {*PROMPT_KEYS, "paraphrases", "inverse", "metrics"}),
    }

    def work() -> None:
        samples = read_manifest(place.layout.manifest)
        testsets.write_questions(place.root / QUESTIONS, testsets.questions(recipe, samples))

    outputs = (place.root / QUESTIONS,)
    return Node(place.step("questions"), "compare", settings, ("prepare",), outputs, work)


def _ask(place: Place, model: Contender, test_set: str) -> Node:
    recipe, folder = place.recipe, place.root / model.key / test_set
    settings: Settings = {
        **recipe.model_dump(mode="json", include={"generation", "evaluation"}),
        "base": recipe.base.model_dump(mode="json"),
        "metrics": part(recipe.tasks, METRIC_KEYS),
        "limits": {} if model.cached else {"uncached samples": recipe.comparison.uncached_samples},
    }
    files = (asking.ANSWERS, asking.SCORES, *([asking.ROUTING] if model.gated else []))
    work = partial(
        asking.ask, recipe, place.layout, model, place.root / QUESTIONS, test_set, folder
    )
    needs = (*model.needs, place.step("questions"))
    key = place.step(f"{model.key}-{test_set}")
    return Node(key, "compare", settings, needs, tuple(folder / file for file in files), work)


def _results(place: Place, models: list[Contender], needs: list[str]) -> Node:
    recipe = place.recipe
    settings: Settings = {
        "comparison": recipe.comparison.model_dump(
            mode="json", include={"replicates", "models", "mixtures"}
        ),
    }

    def work() -> None:
        results.write_results(recipe, models, read_scores(recipe, models, place.root), place.root)

    files = ("results.csv", "differences.csv", "routing.csv", "results.json")
    outputs = tuple(place.root / file for file in files)
    return Node(place.step("results"), "compare", settings, tuple(needs), outputs, work)


def _report(place: Place, models: list[Contender], left_out: list[str]) -> Node:
    work = partial(report.run, place, models, left_out)
    outputs = (place.root / "report.html",)
    settings: Settings = {"name": {"name": place.recipe.name}}
    return Node(place.step("report"), "compare", settings, (place.step("results"),), outputs, work)
