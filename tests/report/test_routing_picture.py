"""The picture of a routing: valid SVG, to scale, with everything escaped."""

import re
from xml.etree import ElementTree

import pytest

from loramix.report.routing import RoutedPrompt, routing_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(experts: list[str], *prompts: RoutedPrompt) -> ElementTree.Element:
    return ElementTree.fromstring(routing_svg(experts, prompts))


def heights(picture: ElementTree.Element) -> list[list[float]]:
    """Return the heights of every path's columns."""
    paths = [path.attrib["d"] for path in picture.iter(f"{SVG}path")]
    return [[float(size) for size in re.findall(r"v([\d.]+)", path)] for path in paths]


def test_columns_are_split_by_the_weights() -> None:
    layers = {"first": [0.25, 0.75], "second": [0.0, 1.0]}
    picture = drawn(["a", "b"], RoutedPrompt("hello", layers, [0.125, 0.875]))
    assert heights(picture) == [[10.0], [30.0, 40.0]]
    assert "b 0.88" in "".join(picture.itertext())
    assert picture.attrib["aria-label"] == "Mean weight of each expert. “hello”: a 0.12, b 0.88"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 1.0], [[20.0], [20.0]]), ([0.25, 0.25], [[10.0], [10.0]]), ([-0.5, 1.0], [[40.0]])],
)
def test_weights_that_do_not_sum_to_1_stay_within_the_picture(
    weights: list[float], expected: list[list[float]]
) -> None:
    assert heights(drawn(["a", "b"], RoutedPrompt("x", {"only": weights}, weights))) == expected


def test_texts_are_escaped_and_cut() -> None:
    text = '<script>alert(1)</script> & "\x00\n' + 200 * "long "
    picture = drawn(["<a>&\x0b"], RoutedPrompt(text, {"only": [1.0]}, [1.0]))
    written = "".join(picture.itertext())
    assert not list(picture.iter(f"{SVG}script"))
    assert '<script>alert(1)</script> & "' in written
    assert "…" in written
    assert "<a>&" in written


def test_a_long_legend_takes_more_rows() -> None:
    few, many = (
        drawn([f"expert number {n}" for n in range(count)], RoutedPrompt("x", {}, [0.0] * count))
        for count in (2, 20)
    )
    assert float(many.attrib["height"]) > float(few.attrib["height"])
    width = float(many.attrib["width"])
    assert all(0 <= float(each.attrib["x"]) < width for each in many.iter(f"{SVG}text"))
