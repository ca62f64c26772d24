"""Every page keeps the rules of WCAG 2.2 A and AA that axe-core can check, on phones and on wide
screens, in light and dark, and is no wider than its screen.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_comparison_report
import test_explanation_page
import test_run_report
import test_verdict_page
from running import running, tiny_mixture

from loramix.report.comparison import comparison_page
from loramix.report.content import SweepReport, SweepRow
from loramix.report.run import run_page
from loramix.report.sweep import sweep_page

SITE = Path(__file__).parents[1] / "build" / "site"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
SWEEP = SweepReport(
    title="loramix: sweep of tiny",
    summary=["Lowest validation loss: gate.hidden 8.", "Training of its gates was kept."],
    keys=["gate.hidden", "gate.learning_rate"],
    losses=["validation loss", "LoRA haiku", "LoRA title", "CGM LoRA"],
    scores=["rouge haiku", "rouge title"],
    rows=[
        SweepRow(
            f"hidden={hidden},learning_rate={rate}",
            [hidden, rate],
            [loss, 3.25, 3.5, None],
            [0.25, 0.125],
        )
        for hidden, rate, loss in [("8", "0.01", 3.0), ("4", "0.01", 3.125), ("8", "0.1", 4.5)]
    ],
    compared=True,
    reports=True,
    recipe="name: tiny\n",
)
REPORTS = {
    "run": lambda: run_page(test_run_report.make_report(samples=2)),
    "comparison": lambda: comparison_page(test_comparison_report.make_report()),
    "explanation": test_explanation_page.page_of,
    "sweep": lambda: sweep_page(SWEEP),
    "verdict": lambda: test_verdict_page.page_of(test_verdict_page.ROWS, ["of one kind"]),
}
OF_SITE = [
    "index",
    "start",
    "results",
    "generated/commands",
    "generated/examples",
    "generated/python",
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("scheme", ["light", "dark"]),
    pytest.mark.parametrize("width", [390, 1280, 1920]),
]


@pytest.fixture
def problems(browser: object, width: int, scheme: str) -> Iterator[Callable[..., list[str]]]:
    """Return a function that lists what is wrong with a page."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True)

    def of(address: str, **options: object) -> list[str]:
        page = context.new_page()
        page.goto(address)
        found = axe.Axe().run(page, options=RULES | options).response["violations"]
        wrong = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append("it is wider than the screen")
        return wrong

    yield of
    context.close()


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_can_be_used_by_all(
    name: str, problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(REPORTS[name](), encoding="utf-8")
    assert problems(file.as_uri()) == []


def test_the_playground_can_be_used_by_all(
    problems: Callable[..., list[str]], make_adapter: Callable[..., Path]
) -> None:
    with running(tiny_mixture(make_adapter)) as server:
        assert problems(server.url) == []


@pytest.mark.skipif(not SITE.is_dir(), reason="there is no site; build it with: make docs")
@pytest.mark.parametrize("place", OF_SITE)
def test_the_site_can_be_used_by_all(place: str, problems: Callable[..., list[str]]) -> None:
    # Its wide tables are the theme's; browsers let keys scroll them all the same.
    rules = {"scrollable-region-focusable": {"enabled": False}}
    assert problems((SITE / f"{place}.html").as_uri(), rules=rules) == []
