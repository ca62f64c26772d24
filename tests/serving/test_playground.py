"""The playground, as a browser shows it and a hand uses it."""

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Running, running, tiny_mixture, until


@pytest.fixture(scope="module")
def server(make_adapter: Callable[..., Path]) -> Iterator[Running]:
    mixture = tiny_mixture(make_adapter)
    mixture.generation_config.suppress_tokens = [1]  # no answer ends before its limit
    with running(mixture) as served:
        yield served


def test_the_page_needs_no_other_file(server: Running) -> None:
    with urllib.request.urlopen(server.url) as response:
        page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for outside in ("src=", "href=", "@import", "url("):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page


def focused(page: object) -> str:
    """Return what the keys go to, by its id or its tag, marked where no outline shows it."""
    return page.evaluate(
        "(at => (at.id || at.tagName.toLowerCase())"
        " + (getComputedStyle(at).outlineStyle === 'none' ? ', unseen' : ''))"
        "(document.activeElement)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_everything_can_be_done_by_keys_alone(server: Running, browser: object, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    keys = page.keyboard
    page.goto(server.url)
    page.wait_for_selector("#main:not([hidden])")
    assert focused(page) == "text"
    page.fill("#tokens", "8")

    page.focus("#text")
    keys.type("a river")
    keys.press("Tab")
    keys.press("Enter")  # on the button, which is disabled until the answer is there
    page.wait_for_selector("#send:not([disabled])")
    assert page.locator(".assistant").last.text_content() == server.alone("a river", 8)[0]

    reached = [focused(page)]
    for _ in range(11):
        keys.press("Tab")
        reached.append(focused(page))
    form = ["text", "send", "compare", "fresh", "link", "temperature", "tokens", "seed"]
    assert reached == [*form, "svg", "hand", "input", "input"]

    keys.press("ArrowRight")  # of the last slider
    assert page.is_checked("#hand")
    for _ in range(3):
        keys.press("Shift+Tab")
    keys.press("ArrowDown")  # to the second expert in the first layer
    assert ": b " in page.text_content("#cell")
    page.focus("#compare")
    keys.press("Space")
    page.wait_for_selector("#send:not([disabled])")
    assert page.locator("#alone .card").count() == 3
    assert focused(page) == "text"
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_hand_types_slides_stops_compares_and_shares(
    server: Running, browser: object, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
    page.goto(server.url)
    last = page.locator(".assistant").last

    page.fill("#tokens", "12")  # typed and streamed
    page.fill("#text", "a river")
    page.press("#text", "Enter")
    page.wait_for_selector("#send:not([disabled])")
    assert last.text_content() == server.alone("a river", 12)[0]
    assert page.locator("#picture rect").count() == 2 * len(server.mixture.layers)

    page.locator("#sliders input").first.fill("1")  # slid
    page.locator("#sliders input").last.fill("0.25")
    page.fill("#text", "a river")
    page.click("#send")
    page.wait_for_selector("#send:not([disabled])")
    held = {"a": 1.0, "b": 0.25}
    assert last.text_content() == server.alone("a river", 12, weights=held)[0]
    assert page.locator("#means output").all_text_contents() == ["1.00", "0.25"]

    page.click("#compare")
    page.wait_for_selector("#send:not([disabled])")
    cards = page.locator("#alone .card").all_text_contents()
    given: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 1.0}]
    for card, weights in zip(cards, given, strict=True):
        assert card.endswith(server.alone("a river", 12, weights=weights)[0])

    page.click("#link")
    assert until(lambda: "#" in page.url)
    again = browser.new_page(viewport={"width": width, "height": 800})
    again.goto(page.url)
    again.wait_for_selector("#main:not([hidden])")
    again.click("#send")
    again.wait_for_selector("#send:not([disabled])")
    assert again.locator(".assistant").last.text_content() == last.text_content()

    page.fill("#tokens", "1000")  # stopped
    page.fill("#text", "a river")
    page.click("#send")
    assert until(lambda: bool(last.text_content()))
    page.click("#stop")
    page.wait_for_selector("#send:not([disabled])")
    assert server.idle()

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert not problems
    page.close()
    again.close()
