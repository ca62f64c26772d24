"""Prompts in other wordings: what they share is left out."""

import pytest

from loramix.data.wordings import NEUTRAL, crossed, other_wordings, template_of, without_template

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


def test_every_request_is_made_about_the_inputs_of_all_others_in_turn() -> None:
    templates = {"haiku": [("haiku: ", "")], "title": [("name ", "!"), ("call ", "?")]}
    inputs = {"haiku": ["rain", "snow"], "title": ["a paper", "a study"], "free": ["hello"]}
    found = crossed(templates, inputs, each=3)
    assert found["haiku"] == ["haiku: a paper", "haiku: hello", "haiku: a study"]
    assert found["title"] == ["name hello!", "call rain?", "name snow!"]
    assert found["free"] == [], "it has no wording of its own"
    assert crossed(templates, {"haiku": ["rain"]}, each=3) == {"haiku": []}


def test_braces_in_texts_mean_nothing() -> None:
    inputs = {"a": ["{x}"], "b": ["{input} {}"]}
    assert crossed({"a": [("{", "}")]}, inputs, each=2)["a"] == ["{{input} {}}"]


def test_a_template_is_what_all_prompts_share() -> None:
    prompts = [f"write a haiku about {word} now" for word in WORDS]
    assert template_of(prompts) == ("write a haiku about ", " now")
    assert template_of(["rain", "snow", "wind", "hail"]) is None
