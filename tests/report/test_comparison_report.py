"""The page of a comparison: a verdict, scores with intervals, and a script that only filters."""

import base64
import hashlib
import re
from dataclasses import fields, replace
from functools import cache

import pytest
from html_page import Page

from loramix.report.comparison import comparison_page, interval, number, shades, verdict
from loramix.report.content import (
    Claim,
    ComparisonReport,
    ComparisonSample,
    Forest,
    LossRow,
    Matrix,
    MeanScore,
    RoutingWeights,
    ScoreTable,
    WeightRow,
    WeightStep,
)
from loramix.report.intervals import WIDTH, forest_plot, shortened, ticks
from loramix.report.page import read_asset
from loramix.report.plots import weights_svg

NAN = float("nan")
SCRIPT = "<script>alert('x')</script>"
EMPTY = ComparisonReport("nothing", [], [], [], [], None, [], {}, {}, [], "")
BASE = MeanScore(0.1, 0.05, 0.15, "")
MIXTURE = MeanScore(0.4, 0.35, 0.45, "tied")
ORACLE = MeanScore(0.425, 0.375, 0.475, "best")
WEIGHTS = [
    WeightRow(f"layers.{layer}.q", task, expert, 0.9 if task == expert else 0.1)
    for layer in range(2)
    for task in ("haiku", "title")
    for expert in ("haiku", "title")
]
STEPS = [
    WeightStep(step, "haiku", expert, 0.5) for step in (0, 10) for expert in ("haiku", "title")
]


def table(
    title: str = "ROUGE", scores: tuple[MeanScore | None, ...] = (BASE, MIXTURE, ORACLE)
) -> ScoreTable:
    names = ("base", "CGM LoRA", "oracle")
    return ScoreTable(
        title,
        "withheld samples",
        ["haiku"],
        [(name, [of]) for name, of in zip(names, scores, strict=True)],
    )


def forest(**changes: object) -> Forest:
    rows = [("oracle", ORACLE), ("CGM LoRA", MIXTURE), ("base", BASE)]
    return replace(Forest("haiku", "ROUGE", "higher", rows), **changes)  # type: ignore[arg-type]


def sample(**changes: str | dict[str, str]) -> ComparisonSample:
    outputs = {"base": "", "CGM LoRA": "snow on pines / a long quiet / bell"}
    return replace(ComparisonSample("plain", "haiku", "snow " * 100, "a bell", outputs), **changes)  # type: ignore[arg-type]


def make_report() -> ComparisonReport:
    return ComparisonReport(
        title="three models",
        claims=[
            Claim("not worse than the oracle", True, "difference −0.025"),
            Claim("faster", False, "1.2 s"),
        ],
        facts=[("Base model", "SmolLM2")],
        tables=[table(), *(table(f"more {index}") for index in range(5))],
        forests=[forest(), forest(title="title", better="lower")],
        matrix=Matrix(
            "Experts × tasks",
            "ROUGE",
            ["haiku", "none"],
            ["haiku", "title"],
            [[0.4, 0.1], [0.2, None]],
        ),
        routing_weights=[
            RoutingWeights("CGM LoRA on plain", WEIGHTS, [("entropy", "0.3")], []),
            RoutingWeights("Arrow on plain", WEIGHTS, [], ["one expert gets everything"]),
        ],
        weight_steps={"CGM LoRA": STEPS},
        losses={"LoRA haiku": [LossRow(10, 0.5, 4.2, 4.4)]},
        samples=[sample(), sample(test_set="mixed", task="title")],
        recipe="name: compare\n",
        verses=frozenset({"haiku"}),
    )


@cache
def whole_page() -> str:
    """Return the page of the report, drawn once: its plots take half a second."""
    return comparison_page(make_report())


def test_every_section_is_present_and_reachable() -> None:
    page = Page(whole_page())
    assert page.open == []
    assert page.headings == [
        *("three models", "ROUGE", "Intervals", "More scores", "more 0", "more 1", "more 2"),
        *("Experts × tasks", "Routing", "Over training", "Losses", "Samples", "Recipe"),
    ]
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


def test_of_many_claims_those_that_do_not_hold_come_first() -> None:
    many = [Claim(f"better than {index}", index != 7, "") for index in range(20)]
    html = comparison_page(replace(make_report(), claims=many))
    assert html.index("better than 7") < html.index("The 19 claims that hold")
    assert html.index("The 19 claims that hold") < html.index("better than 0")
    few = comparison_page(replace(make_report(), claims=many[:8]))
    assert few.index("better than 0") < few.index("better than 7")
    assert "The 19 claims that hold" not in few


def test_the_page_loads_nothing_and_runs_only_its_own_script() -> None:
    page = Page(whole_page())
    assert page.loads
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.loads)
    assert all(target.startswith("#") for target in page.targets)
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert page.handlers == []
    assert page.scripts == [read_asset("search.js")]


def test_the_policy_allows_exactly_that_script() -> None:
    page = Page(whole_page())
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_the_script_handles_text_as_text() -> None:
    script = read_asset("search.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|</script|\r", script
    )


def test_text_from_data_and_models_is_escaped() -> None:
    bad = f'{SCRIPT}" onload="x'
    report = ComparisonReport(
        title=bad,
        claims=[Claim(bad, None, bad)],
        facts=[(bad, bad)],
        tables=[ScoreTable(bad, bad, [bad], [(bad, [ORACLE])])] * 6,
        forests=[Forest(bad, bad, "neither", [(bad, ORACLE)])],
        matrix=Matrix(bad, bad, [bad], [bad], [[0.5]]),
        routing_weights=[RoutingWeights(bad, [WeightRow(bad, bad, bad, 0.5)], [(bad, bad)], [bad])],
        weight_steps={bad: [WeightStep(1, "$_{", "$x_", 0.5)]},
        losses={bad: []},
        samples=[ComparisonSample(bad, bad, bad, bad, {bad: bad})],
        recipe=bad,
    )
    page = Page(comparison_page(report))
    assert page.open == []
    assert page.scripts == [read_asset("search.js")]
    assert page.handlers == []


def test_claims_are_told_in_words() -> None:
    claims = [
        Claim("not worse", True, ""),
        Claim("faster", False, "1.2 s"),
        Claim("smaller", None, "too few samples"),
    ]
    text = comparison_page(replace(EMPTY, claims=claims))
    assert re.findall(r"<i aria-hidden=\"true\">(.)</i> ([\w ]+)</b>(\w[\w ]+)", text) == [
        ("✓", "Holds", "not worse"),
        ("✗", "Does not hold", "faster"),
        ("?", "Undecided", "smaller"),
    ]
    assert "1 of 3 claims hold, 1 does not, 1 is undecided." in text
    assert "<p>too few samples</p>" in text


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([True], "1 of 1 claim holds."),
        ([True, True], "2 of 2 claims hold."),
        ([False, False, None, None], "0 of 4 claims hold, 2 do not, 2 are undecided."),
    ],
)
def test_a_verdict_counts(held: list[bool | None], words: str) -> None:
    assert verdict([Claim("", holds, "") for holds in held]) == words


def test_the_best_and_those_not_worse_are_marked() -> None:
    text = comparison_page(replace(EMPTY, tables=[table()]))
    assert re.findall(r'<b title="best">([^<]*)</b>', text) == ["0.425"]
    assert re.findall(r'<em title="not significantly worse than the best">([^<]*)</em>', text) == [
        "0.400"
    ]
    assert "<td>0.100<small>0.050 to 0.150</small></td>" in text
    assert "the paired 95 % interval of the difference holds 0" in text


def test_numbers_that_are_none_are_dashes() -> None:
    assert [number(value) for value in (None, NAN, float("inf"), -0.5, -1e-9, 1234.5)] == [
        "–",
        "–",
        "–",
        "−0.500",
        "0.000",
        "1234.500",
    ]
    assert interval(MeanScore(0.5, 0.4, NAN, "")) == interval(MeanScore(0.5, None, 0.6, "")) == ""
    text = comparison_page(
        replace(EMPTY, tables=[table(scores=(None, MeanScore(NAN, None, None, ""), ORACLE))])
    )
    assert text.count("<td>–</td>") == 2


def test_tables_beyond_the_third_below_the_headline_are_folded() -> None:
    text = comparison_page(replace(EMPTY, tables=make_report().tables))
    assert re.findall(r'<details class="fold"><summary>([^<]*)</summary>', text) == [
        "more 3",
        "more 4",
    ]


def test_a_comparison_of_nothing_says_so() -> None:
    text = comparison_page(EMPTY)
    page = Page(text)
    assert page.open == []
    assert page.scripts == []
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)
    missing = (
        "No claims were made",
        "No model was scored",
        "no intervals to draw",
        "not scored on each other",
    )
    assert all(
        words in text
        for words in (
            *missing,
            "No routers were compared",
            "No model was trained",
            "No samples were",
        )
    )


@pytest.mark.parametrize(
    "name",
    [field.name for field in fields(ComparisonReport) if field.name not in ("title", "recipe")],
)
def test_every_part_can_stand_alone(name: str) -> None:
    assert Page(comparison_page(replace(EMPTY, **{name: getattr(make_report(), name)}))).open == []


def test_warnings_stay_visible_where_routing_is_folded() -> None:
    text = whole_page()
    folds = re.findall(
        r'<details class="fold"( open)?><summary>([^<]*on plain)(.*?)</summary>', text
    )
    assert [(opened, title) for opened, title, _ in folds] == [
        (" open", "CGM LoRA on plain"),
        ("", "Arrow on plain"),
    ]
    assert [rest for *_, rest in folds] == [
        "",
        '<span class="warning">⚠ Warning: one expert gets everything</span>',
    ]


def test_routing_without_weights_says_so() -> None:
    text = comparison_page(replace(EMPTY, routing_weights=[RoutingWeights("Arrow", [], [], [])]))
    assert "No weights were recorded." in text


def test_weights_that_are_no_numbers_are_dashes() -> None:
    rows = [replace(WEIGHTS[0], weight=NAN), *WEIGHTS[1:]]
    text = comparison_page(replace(EMPTY, routing_weights=[RoutingWeights("Arrow", rows, [], [])]))
    assert text.count('<td title="not a number">–</td>') == 2  # its own, and the mean over layers
    assert ">nan<" not in text


def test_the_matrix_is_shaded_by_column() -> None:
    assert shades([[0.4, 0.1], [0.2, None], [0.3, NAN]]) == [[100, 0], [0, 0], [50, 0]]
    text = whole_page()
    assert re.findall(r'<td( class="own")? style="--share: (\d+)%">([^<]*)<', text)[:4] == [
        (' class="own"', "100", "0.400"),
        ("", "0", "0.100"),
        ("", "0", "0.200"),
        ("", "0", "–"),
    ]


def test_samples_can_be_told_apart_by_the_script() -> None:
    text = whole_page()
    assert re.findall(r'<article class="sample" data-set="(\w+)" data-task="(\w+)">', text) == [
        ("plain", "haiku"),
        ("mixed", "title"),
    ]
    assert text.count('data-model="0"') == text.count('data-model="1"') == 2
    assert re.findall(r'type="checkbox" value="(\d)"[^>]*> ([^<]*)<', text) == [
        ("0", "base"),
        ("1", "CGM LoRA"),
    ]
    assert re.findall(r'<option value="(\w+)">', text) == ["plain", "mixed", "haiku", "title"]


def test_samples_are_shown_without_scripts_and_the_search_is_not() -> None:
    text = whole_page()
    assert re.search(r'<div id="finder"[^>]* hidden>', text)
    assert not re.search(r"<(article|div data-model)[^>]* hidden", text)
    assert "<div>snow on pines</div><div>a long quiet</div><div>bell</div>" in text


def test_every_name_the_script_asks_for_is_on_the_page() -> None:
    asked = re.search(r"\] = \[([^\]]*)\]\.map", read_asset("search.js"))
    assert asked is not None
    ids = {"finder", *re.findall(r'"(\w+)"', asked[1])}
    assert len(ids) == 6
    assert ids <= set(Page(whole_page()).ids)


def test_a_forest_places_values_and_intervals() -> None:
    plot = forest_plot(forest())
    oracle, mixture, base = plot.rows
    assert plot.oracle == oracle.x
    assert [row.y for row in plot.rows] == sorted(row.y for row in plot.rows)
    for row in plot.rows:
        assert row.x is not None
        assert row.span is not None
        assert plot.left <= row.span[0] < row.x < row.span[1] <= plot.right < WIDTH
    assert oracle.x > mixture.x > base.x  # type: ignore[operator]
    assert all(plot.left <= x <= plot.right for x, _ in plot.ticks)


def test_a_forest_is_drawn_with_marks_that_differ_in_shape() -> None:
    text = comparison_page(replace(EMPTY, forests=[forest()]))
    svg = text[text.index("<svg") : text.index("</svg>")]
    groups = re.findall(r'<g class="row (\w+)"><title>(.*?)</title>.*?<(path|circle)', svg, re.S)
    assert groups == [
        ("best", "oracle: 0.425 (0.375 to 0.475), best", "path"),
        (
            "tied",
            "CGM LoRA: 0.400 (0.350 to 0.450), not significantly worse than the best",
            "circle",
        ),
        ("rest", "base: 0.100 (0.050 to 0.150)", "circle"),
    ]
    assert svg.count('class="oracle"') == 1
    assert "higher is better" in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("base", MeanScore(NAN, None, None, ""))],
        [("base", MeanScore(0.0, None, None, "best"))],
        [("base", MeanScore(-2.0, None, 3.0, ""))],
        [("a name " * 20, MeanScore(1e6, 9e5, 2e6, ""))],
    ],
)
def test_few_or_useless_values_still_make_a_forest(rows: list[tuple[str, MeanScore]]) -> None:
    assert forest_plot(forest(rows=rows)).oracle is None
    assert Page(comparison_page(replace(EMPTY, forests=[forest(rows=rows)]))).open == []


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.02, 0.48, ["0.1", "0.2", "0.3", "0.4"]),
        (-1.1, 1.1, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0.401, 0.449, ["0.41", "0.42", "0.43", "0.44"]),
        (95.0, 1050.0, ["200", "400", "600", "800", "1000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in ticks(low, high)] == labels


def test_long_names_keep_their_ends() -> None:
    assert shortened("oracle") == "oracle"
    brief = shortened("CGM token gate with softmax and temperature 0.5")
    assert len(brief) <= 26
    assert brief.startswith("CGM token")
    assert brief.endswith("temperature 0.5"[-10:])


@pytest.mark.parametrize(
    "rows", [STEPS, [], [WeightStep(0, "$_", "_a", NAN)], [WeightStep(0, "$_{", "_$x", 0.5)]]
)
def test_routing_over_steps_is_drawn_the_same_every_time(rows: list[WeightStep]) -> None:
    svg = weights_svg("CGM $LoRA", rows)
    assert svg.startswith("<svg")
    assert svg == weights_svg("CGM $LoRA", rows)
