"""Prompts in other wordings: what they share is left out."""

import pytest

from loramix.assembly.wordings import NEUTRAL, other_wordings, without_template

WORDS = ("rain", "radishes", "a long summer", "rest")


@pytest.mark.parametrize(
    "template",
    [
        "write a haiku about {}",
        "{}\nAnswer with SQL.",
        "Q: {} A:",
        "Say '{}' aloud",
        "{}: a title?",
    ],
)
def test_what_all_prompts_share_is_left_out_by_whole_words(template: str) -> None:
    found = without_template([template.format(word) for word in WORDS])
    assert all(word in text for word, text in zip(WORDS, found, strict=True))
    assert sum(map(len, found)) < sum(map(len, WORDS)) + 2 * len(WORDS)  # a mark may stay


def test_prompts_that_share_nothing_are_left_as_they_are() -> None:
    assert without_template(["rain", "snow", "wind", "hail"]) == []
    assert without_template(["rain again", "rain anew", "rain"]) == []  # too few to tell
    assert without_template(["about"] * 9) == []
    assert without_template(["about rain", "about snow", "about hail", "about "]) == []


def test_inputs_are_asked_by_themselves_and_in_neutral_wordings() -> None:
    found = other_wordings(["x"] * 4, list(WORDS))
    assert found[:4] == list(WORDS)
    assert NEUTRAL[1].format(WORDS[1]) in found
    assert other_wordings(["no", "thing", "in", "common"]) == []
