"""The verdict on scores that are made up."""

from pathlib import Path

import numpy as np

from loramix.comparison.models import mixture_row
from loramix.comparison.scores import ModelScores, Scores
from loramix.comparison.verdict import verdict
from loramix.experiment.reading import load_recipe
from loramix.report.content import Claim

MIXTURE, SAMPLES = mixture_row("CGM LoRA"), 20


def part(row: str, test_set: str, task: str, value: float) -> ModelScores:
    ids, values = tuple(map(str, range(SAMPLES))), np.full(SAMPLES, value)
    answers = Path("nowhere")
    scored = {"combined": values}
    return ModelScores(row, row, 0, test_set, task, ids, scored, np.ones(SAMPLES), answers)


def claims(**means: float) -> list[Claim]:
    """Return the verdict where every model has one score on all samples."""
    parts = []
    for row, value in means.items():
        name = MIXTURE if row == "mixture" else row
        for test_set in ("named", "bare"):
            parts += [part(name, test_set, task, value) for task in ("haiku", "title")]
    return verdict(load_recipe("tiny"), Scores(parts, replicates=100))


def holds(**means: float) -> list[bool | None]:
    return [claim.holds for claim in claims(**means)]


def test_where_all_are_alike_nothing_is_better_than_anything_else() -> None:
    assert holds(base=0.5, uniform=0.5, mixture=0.5, oracle=0.5) == [True, True, None, None, None]


def test_a_better_mixture_bears_out_every_claim() -> None:
    assert holds(base=0.2, uniform=0.3, mixture=0.6, oracle=0.6) == [True] * 5


def test_a_worse_mixture_bears_out_none() -> None:
    assert holds(base=0.2, uniform=0.3, mixture=0.1, oracle=0.6) == [False] * 5


def test_most_of_the_gain_is_not_enough() -> None:
    *_, kept = claims(base=0.2, mixture=0.5, oracle=0.6)
    assert "keeps 95%" in kept.text
    assert "it keeps 75.0%" in kept.evidence
    assert kept.holds is False


def test_a_claim_says_what_its_rival_is() -> None:
    other = mixture_row("reference gate")
    rivals = dict.fromkeys(("base", "joint-small", "ties", other), 0.4)
    texts = [claim.text for claim in claims(**rivals, mixture=0.5)]
    assert texts == [
        f"Over all tasks, {MIXTURE} is better than {rival}"
        for rival in (
            "the base alone",
            "one small LoRA trained on all tasks",
            "TIES, a merge of the experts",
            f"the mixture '{other}'",
        )
    ]


def test_experts_are_no_rivals_and_a_mixture_that_was_not_asked_claims_nothing() -> None:
    texts = [claim.text for claim in claims(**{"lora-haiku": 0.4}, mixture=0.5, oracle=0.5)]
    assert not any("better than" in text for text in texts)
    assert claims(base=0.5, oracle=0.6) == []
