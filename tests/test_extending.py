"""Whatever must be said in several places when something is added is said in all of them.

`docs/architecture.md` names these tests where it tells how to add a gate context, a baseline, a
metric or a stage.
"""

import pkgutil
from pathlib import Path
from typing import get_args

import cases
import pytest
from click.testing import CliRunner

from loramix.bases.loading import encoder_path
from loramix.cli.main import cli
from loramix.comparison import baselines
from loramix.config import Activation, Context, Mixing
from loramix.data.catalogue import built_in
from loramix.data.tasks import Metric
from loramix.experiment.graph import run_steps
from loramix.experiment.reading import load_recipe
from loramix.experiment.recipe import STAGES, ModelName
from loramix.experiment.run import Run
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.measures import MEASURES, SCORE_FILES, answer_scores


def test_the_contract_tries_every_setting_of_a_gate() -> None:
    assert sorted(cases.CONTEXTS) == sorted(get_args(Context))
    assert sorted(cases.ACTIVATIONS) == sorted(get_args(Activation))
    assert sorted(cases.MIXING) == sorted(get_args(Mixing))


def test_every_file_of_the_baselines_can_be_named_in_a_recipe() -> None:
    files = {module.name for module in pkgutil.iter_modules(baselines.__path__)}
    smaller = {"joint-small"}  # lies beside `joint`
    assert files - {"baseline", "shared", "learned_weights"} == set(baselines.BASELINES) - smaller
    assert set(baselines.BASELINES) <= set(get_args(ModelName))


@pytest.mark.parametrize("metric", get_args(Metric))
def test_every_metric_has_scores_and_a_table(metric: Metric) -> None:
    task = built_in("demo-haiku").model_copy(update={"metrics": (metric,)})
    encoder = BertScorer(encoder_path("tiny-bert")) if metric == "bertscore" else None
    scores = answer_scores(
        task, ["rain"], ["rain falls"], ["a drop"], bertscore=encoder, finished=[True]
    )
    asked = {measure.name for measure in MEASURES.values() if measure.metric == metric}
    assert asked
    assert asked <= scores.keys()
    tables = [table.name for table in SCORE_FILES if metric in table.metrics]
    assert set(tables) - {"test_loss"}  # which every metric has


def test_the_stages_that_can_be_asked_for_are_those_of_the_graph(tmp_path: Path) -> None:
    steps = run_steps(Run(load_recipe("tiny"), tmp_path), {})
    assert list(dict.fromkeys(step.stage for step in steps)) == list(STAGES)
    named = CliRunner().invoke(cli, ["run", "--help"]).output.split()
    assert {word.strip(".,") for word in named} >= set(STAGES)
