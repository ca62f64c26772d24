"""Compare: the steps of a comparison. Those of the run that it needs, then fits, questions to every
model, results, report.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from loramix.comparison import asking, report, results, testsets
from loramix.comparison.comparison import STAGE, ComparedModel, Comparison, comparison_folder
from loramix.comparison.models import compared_models
from loramix.comparison.scores import read_scores
from loramix.comparison.testsets import QUESTIONS
from loramix.experiment.executors.in_order import in_order
from loramix.experiment.executors.job import Executor
from loramix.experiment.graph import (
    METRIC_FIELDS,
    PROMPT_FIELDS,
    TEST_SET_FIELDS,
    Settings,
    Step,
    base_settings,
    expert_settings,
    run_steps,
    task_settings,
)
from loramix.experiment.processes import refuse_several_processes
from loramix.experiment.recipe import Recipe, TestSet
from loramix.experiment.run import Run
from loramix.experiment.runner import LOCK, RECIPE, begin, do_steps, pin
from loramix.metrics.words import TOKENIZER
from loramix.storage.locks import locked

log = logging.getLogger("loramix")
_OF_RUN = ("prepare", "finetune", "lora")  # stages that leave what is compared


def compare(
    recipe: Recipe, root: Path, *, wait: bool = False, executor: Executor = in_order
) -> Path:
    """Run the recipe's comparison in the run folder `root`, which may hold its experts; return the
    comparison's folder.

    Several recipes may be compared in one run folder: steps that they share are done once.
    wait: for another process that runs in the folder; else it raises BusyError.
    executor: who does the steps.
    Raises StageError in each of several processes, before anything is written.
    """
    refuse_several_processes("a comparison")
    folder = comparison_folder(recipe, root)
    with locked(root, root / LOCK, wait=wait):
        began = folder / RECIPE if (folder / RECIPE).is_file() else root / RECIPE
        comparison = Comparison(Run(pin(recipe, began), root))
        steps = comparison_steps(comparison, begin(comparison.recipe, folder))
        do_steps(steps, [steps[-1].key], root, executor)
    return folder


def comparison_steps(comparison: Comparison, sources: Mapping[str, str]) -> list[Step]:
    """Return the steps of a comparison, each after those it needs."""
    models, left_out = compared_models(comparison)
    for reason in left_out:
        log.info("left out: %s", reason)
    shared = [step for step in run_steps(comparison.run, sources) if step.stage in _OF_RUN]
    fits: list[Step] = []
    asked: list[Step] = []
    for model in models:
        fits += model.fits
        for test_set in model.asked(comparison.recipe.comparison.test_sets):
            asked.append(_ask(comparison, model, test_set))
    return [
        *shared,
        *fits,
        _questions(comparison),
        *asked,
        _results(comparison, models, [step.key for step in asked]),
        _report(comparison, models, left_out),
    ]


def _questions(comparison: Comparison) -> Step:
    recipe, file = comparison.recipe, comparison.root / QUESTIONS
    fields = {"test_sets", "test_samples", "side_samples"}
    settings: Settings = {
        "test sets": recipe.comparison.model_dump(mode="json", include=fields),
        "prompts": task_settings(recipe.tasks, PROMPT_FIELDS | METRIC_FIELDS | TEST_SET_FIELDS),
    }

    def work() -> None:
        testsets.write_questions(file, testsets.questions(comparison.run))

    return Step(comparison.step_key("questions"), STAGE, settings, ("prepare",), (file,), work)


def _ask(comparison: Comparison, model: ComparedModel, test_set: TestSet) -> Step:
    recipe, folder = comparison.recipe, comparison.folder(model, test_set)
    limits = {} if model.cached else {"uncached samples": recipe.comparison.uncached_samples}
    if recipe.comparison.answered_samples is not None:
        limits["answered samples"] = recipe.comparison.answered_samples
    settings: Settings = {
        **recipe.model_dump(mode="json", include={"generation", "evaluation"}),
        "base": base_settings(recipe.base),
        "metrics": task_settings(recipe.tasks, METRIC_FIELDS),
        "limits": limits,
    }
    files = (asking.ANSWERS, asking.SCORES, *([asking.ROUTING] if model.gated else []))
    return Step(
        comparison.step_key(f"{model.key}-{test_set}"),
        STAGE,
        settings,
        (*model.needs, comparison.step_key("questions")),
        tuple(folder / file for file in files),
        partial(asking.ask, comparison, model, test_set),
    )


def _results(comparison: Comparison, models: Sequence[ComparedModel], needs: Sequence[str]) -> Step:
    fields = {"replicates", "models", "mixtures"}
    settings: Settings = {
        "comparison": comparison.recipe.comparison.model_dump(mode="json", include=fields),
        "tokenizer": TOKENIZER,  # answers stay, and are scored anew
        **expert_settings(comparison.recipe),
    }

    def work() -> None:
        results.write_results(comparison, models, read_scores(comparison, models))

    outputs = tuple(comparison.root / file for file in results.FILES)
    return Step(comparison.step_key("results"), STAGE, settings, tuple(needs), outputs, work)


def _report(
    comparison: Comparison, models: Sequence[ComparedModel], left_out: Sequence[str]
) -> Step:
    return Step(
        comparison.step_key("report"),
        STAGE,
        {"name": {"name": comparison.recipe.name}},
        (comparison.step_key("results"),),
        (comparison.root / "report.html",),
        partial(report.run, comparison, models, left_out),
    )
