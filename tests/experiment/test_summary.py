"""The summary of a run says what the numbers say, and nothing where there are none."""

import pytest

from loramix.experiment.reading import load_recipe
from loramix.experiment.summary import sentences, verdict

RECIPE = load_recipe("tiny")
OWN = {"haiku": "LoRA haiku", "title": "LoRA title"}
LOSSES = {
    "base": {"haiku": 4.0, "title": 4.0},
    "LoRA haiku": {"haiku": 2.0, "title": 5.0},
    "LoRA title": {"haiku": 5.0, "title": 3.0},
    "CGM LoRA": {"haiku": 2.1, "title": 3.0},
}


def mixture(haiku: float, title: float) -> dict[str, dict[str, float]]:
    return LOSSES | {"CGM LoRA": {"haiku": haiku, "title": title}}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (mixture(2.0, 2.9), "The mixture is at least as good as the right expert, on every task."),
        # as good as far as anyone is shown; the smallest difference that is
        (mixture(2.0004, 3.0), "The mixture is at least as good as the right expert"),
        (mixture(2.0006, 3.0), "right expert on 1 of 2 tasks: haiku (2.001 beside 2.000)."),
        (mixture(2.1, 3.0), "right expert on 1 of 2 tasks: haiku (2.100 beside 2.000)."),
        (mixture(2.1, 3.5), "on every task: haiku (2.100 beside 2.000) and title (3.500 beside"),
    ],
)
def test_the_verdict_is_that_of_the_losses(
    losses: dict[str, dict[str, float]], expected: str
) -> None:
    assert expected in verdict(losses, OWN)


def test_the_summary_tells_the_gain_and_the_best() -> None:
    told = " ".join(sentences(RECIPE, LOSSES))
    assert "it keeps 95 % on haiku and 100 % on title." in told
    assert "samples: LoRA haiku on haiku (2.000), LoRA title and CGM LoRA on title (3.000)." in told
    assert "adapters for haiku and title, and gates" in told


def test_losses_that_look_equal_share_the_lowest() -> None:
    told = " ".join(sentences(RECIPE, mixture(2.0, 3.0001)))
    assert "LoRA title and CGM LoRA on title (3.000)." in told


def test_an_undone_training_is_told() -> None:
    assert "they stay where they started" in " ".join(sentences(RECIPE, LOSSES, gates_stayed=True))
    assert "they stay where they started" not in " ".join(sentences(RECIPE, LOSSES))


def test_an_expert_that_gains_nothing_is_named() -> None:
    useless = LOSSES | {"LoRA title": {"haiku": 5.0, "title": 4.5}}
    assert "The expert of title gains nothing over the base" in " ".join(sentences(RECIPE, useless))


def test_without_losses_only_the_training_is_told() -> None:
    assert sentences(RECIPE, {}) == [
        "Trained on tiny-llama: adapters for haiku and title, and gates that mix them without "
        "being told the task (the mixture, CGM LoRA in the tables)."
    ]
