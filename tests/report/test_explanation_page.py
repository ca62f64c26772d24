"""The page of an explanation: every weight of one prompt, in the colours of the experts."""

import re

import pytest
from html_page import Page

from loramix.report.explanation import explanation_page

LAYERS = {"layers.0.q": [0.9, 0.1], "layers.1.q": [0.5, 0.5]}
TOKENS = [("snow", [1.0, 0.0]), (" on", [0.5, 0.5]), (" pines", [0.25, 0.75])]


def page_of(prompt: str = "snow on pines", **changes: object) -> str:
    parts = {"layers": LAYERS, "mean": [0.7, 0.3], "tokens": TOKENS} | changes
    return explanation_page(prompt, ["haiku", "title"], **parts)  # type: ignore[arg-type]


def test_the_page_shows_the_mean_and_every_layer() -> None:
    text = page_of()
    page = Page(text)
    assert page.open == []
    assert page.headings == ["How much of each expert this prompt gets", "Tokens", "Layers"]
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', text, re.S)
    shown = {name: re.findall(r">([\d.]+)</span>", cells) for name, cells in rows}
    assert shown == {
        "mean": ["0.70", "0.30"],
        "layers.0.q": ["0.90", "0.10"],
        "layers.1.q": ["0.50", "0.50"],
    }


def test_a_token_has_the_colour_of_its_leader_and_the_strength_of_its_lead() -> None:
    found = re.findall(r'<span class="e(\d)" style="--share: (\d+)%" title="([^"]*)"', page_of())
    assert found == [
        ("0", "100", "haiku 1.00, title 0.00"),
        ("0", "0", "haiku 0.50, title 0.50"),
        ("1", "50", "haiku 0.25, title 0.75"),
    ]


def test_gates_that_decide_once_per_prompt_show_no_tokens() -> None:
    assert Page(page_of(tokens=[])).headings[1:] == ["Layers"]


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [0.25] * 4])
def test_one_expert_and_no_weight_at_all_can_be_shown(weights: list[float]) -> None:
    experts = [f"expert-{index}" for index in range(len(weights))]
    tokens = [("snow", weights)]
    text = explanation_page("snow", experts, layers={"q": weights}, mean=weights, tokens=tokens)
    assert Page(text).open == []


def test_all_text_is_escaped() -> None:
    bad = "<script>alert('x')</script>"
    text = explanation_page(bad, [bad], layers={bad: [1.0]}, mean=[1.0], tokens=[(bad, [1.0])])
    assert "<script" not in text
    assert Page(text).handlers == []
