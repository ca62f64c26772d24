"""The page of a verdict: routing, losses, warnings."""

from html_page import Page

from loramix.report.verdict import VerdictPage, VerdictRow, verdict_page

LOSSES = {"base": 3.0, "best other expert": None, "own expert": 1.0, "mixture": 1.5}
ROWS = [
    VerdictRow("sql <b>", 4, {"sql <b>": 0.75, "poems": 0.25}, LOSSES, 0.75),
    VerdictRow("poems", 4, {"sql <b>": 0.0, "poems": 1.0}, {}, None),
]


def page_of(rows: list[VerdictRow], warnings: list[str]) -> str:
    return verdict_page(
        VerdictPage("mine", [("base", "tiny")], ["sql <b>", "poems"], rows, warnings)
    )


def test_the_page_shows_routing_losses_and_warnings() -> None:
    text = page_of(ROWS, ["'sql <b>' and 'poems' cannot be told apart"])
    page = Page(text)
    assert page.open == []
    assert page.headings == ["mine", "Routing", "Losses"]
    assert "cannot be told apart" in text
    assert "sql <b>" not in text  # escaped
    assert 'class="own" style="--share: 75%">0.75<' in text
    assert "0.750</td>" in text  # the share of gain
    assert "–" in text  # of the other expert there is no loss


def test_a_page_without_examples_says_so() -> None:
    text = page_of([], [])
    assert Page(text).open == []
    assert "There were no examples to ask." in text
    assert "No warnings" not in text
