"""The page of a run: it needs no other file, trusts no text and shows all that it is given."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from html_page import Page

from loramix.report.content import LossRow, RunReport, RunSample, RunTable, WeightRow, mean_weights
from loramix.report.heatmap import weight_heatmap
from loramix.report.plots import losses_svg, plot_losses
from loramix.report.run import best_cells, run_page

SCRIPT = "<script>alert('x')</script>"
LOSSES = [
    LossRow(10, 0.5, 4.2, None),
    LossRow(20, 1.0, 3.1, 3.4),
    LossRow(30, 1.5, 2.0, None),
    LossRow(40, 2.0, 1.5, 3.9),
]
SCORES: list[list[str | float | None]] = [
    ["base", 0.125, 0.5],
    ["CGM LoRA", 0.375, 0.25],
    ["LoRA haiku", None, 0.5],
]


def table(best: str | None = "max", rows: list[list[str | float | None]] = SCORES) -> RunTable:
    return RunTable("ROUGE", "on withheld samples", ["model", "haiku", "title"], rows, best)  # type: ignore[arg-type]


def weights(layers: list[str], experts: tuple[str, ...] = ("haiku", "title")) -> list[WeightRow]:
    return [
        WeightRow(layer, task, expert, 1 / len(experts))
        for layer in layers
        for task in ("haiku", "title")
        for expert in experts
    ]


def make_report(output: str = "snow on pines / a long quiet / bell", samples: int = 1) -> RunReport:
    sample = RunSample("snow " * 100, SCRIPT, {"base": "", "CGM LoRA": output})
    return RunReport(
        title="loramix: demo",
        summary=[("Base model", "SmolLM2"), ("Seed", "0")],
        tables=[table(), RunTable("Haiku form", "", ["model", "poem_575"], [["base", 0.0]], None)],
        losses={"LoRA haiku": LOSSES},
        weights=weights([f"model.layers.{n}.self_attn.{p}_proj" for n in range(2) for p in "qv"]),
        samples={"haiku": [sample] * samples},
        recipe="name: demo\n# see https://example.org\n",
        verses=frozenset({"haiku"}),
    )


@cache
def whole_page() -> str:
    """Return the page of the report, drawn once."""
    return run_page(make_report())


def test_every_section_is_present_and_reachable() -> None:
    page = Page(whole_page())
    assert page.open == []
    assert page.headings == [
        *("loramix: demo", "ROUGE", "More scores", "Haiku form"),
        *("Losses", "Gate weights", "Samples: haiku", "Recipe"),
    ]
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


def test_the_page_loads_nothing() -> None:
    text = whole_page()
    page = Page(text)
    assert page.loads
    assert all(source.startswith("data:") for source in page.loads)
    assert all(target.startswith("#") for target in page.targets)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_text_from_data_and_models_is_escaped() -> None:
    text = run_page(make_report(output=f"{SCRIPT} / {SCRIPT}"))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 3


def test_samples_show_lines_empty_answers_and_collapsed_inputs() -> None:
    text = whole_page()
    assert "<div>snow on pines</div><div>a long quiet</div><div>bell</div>" in text
    assert text.count("(empty)") == 1
    assert "show less" in text


def test_texts_of_other_tasks_keep_their_slashes_and_spaces() -> None:
    code = "if a:\n    b = c / d\n"
    page = run_page(replace(make_report(output=code), verses=frozenset()))
    assert f"<div>{code}</div>" in page
    assert "white-space: pre-wrap" in page


def test_the_verdict_opens_the_page_and_is_escaped() -> None:
    page = run_page(replace(make_report(), verdict=(f"It won {SCRIPT}.", "It was trained.")))
    opening = page[: page.index("<nav")]
    assert "It won &lt;script&gt;" in opening
    assert "<li>It was trained.</li>" in opening


def test_at_most_twenty_samples_are_shown() -> None:
    assert run_page(make_report(samples=25)).count("<article") == 20


def test_the_best_value_of_a_column_is_marked() -> None:
    assert best_cells(table("max")) == {(1, 1), (0, 2), (2, 2)}
    assert best_cells(table("min")) == {(0, 1), (1, 2)}
    assert best_cells(table(None)) == set()
    marked = re.findall(r'<b title="best">([^<]*)</b>', whole_page())
    assert marked == ["0.500", "0.375", "0.500"]


def test_nothing_is_best_where_all_are_equal_or_unknown() -> None:
    nan = float("nan")
    assert best_cells(
        table(rows=[["base", 0.5, nan], ["CGM LoRA", 0.5, 0.1], ["LoRA haiku", None, 0.2]])
    ) == {(2, 2)}


def test_a_report_of_nothing_says_so() -> None:
    page = run_page(RunReport("nothing", [], [], {}, [], {}, ""))
    assert Page(page).open == []
    assert all(
        text in page
        for text in ("No model was scored", "No model was trained", "No gates were trained")
    )


@pytest.mark.parametrize(
    ("layers", "columns", "blocks"),
    [
        (
            [f"model.layers.{n}.self_attn.{p}" for n in range(3) for p in ("q_proj", "o_proj")],
            ["q_proj", "o_proj"],
            ["layers 0", "layers 1", "layers 2"],
        ),
        (
            [
                *(
                    "encoder.block.0.layer.0.SelfAttention.q",
                    "encoder.block.0.layer.1.DenseReluDense.wo",
                ),
                *(
                    "decoder.block.0.layer.0.SelfAttention.q",
                    "decoder.block.0.layer.1.EncDecAttention.q",
                ),
                "decoder.block.0.layer.2.DenseReluDense.wo",
            ],
            ["SelfAttention q", "DenseReluDense wo", "EncDecAttention q"],
            ["encoder block 0", "decoder block 0"],
        ),
        (
            [f"model.layers.{n}.mlp.experts.{e}.up" for n in range(2) for e in range(2)],
            ["0 up", "1 up"],
            ["layers 0", "layers 1"],
        ),
        (["lm_head"], ["lm_head"], ["lm_head"]),
    ],
)
def test_layers_find_their_place(layers: list[str], columns: list[str], blocks: list[str]) -> None:
    heatmap = weight_heatmap(weights(layers))
    assert heatmap.columns == columns
    assert [(each.task, each.expert) for each in heatmap.maps] == [
        ("haiku", "haiku"),
        ("title", "haiku"),
    ]
    for each in heatmap.maps:
        assert [block for block, _ in each.rows] == blocks
        assert sum(weight is not None for _, row in each.rows for weight in row) == len(layers)


def test_three_experts_have_a_panel_each() -> None:
    heatmap = weight_heatmap(weights(["h.0.attn.c_attn"], ("a", "b", "c")))
    assert [each.expert for each in heatmap.maps] == ["a", "b", "c"] * 2
    assert heatmap.even == pytest.approx(1 / 3)


def test_mean_weights_are_means_over_layers() -> None:
    rows = [WeightRow("h.0.c", "haiku", "a", 0.2), WeightRow("h.1.c", "haiku", "a", 0.6)]
    assert mean_weights(rows) == {"haiku": {"a": pytest.approx(0.4)}}


def test_losses_become_a_png(tmp_path: Path) -> None:
    path = tmp_path / "new" / "losses.png"
    plot_losses("LoRA $haiku", LOSSES, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "rows", [[], [LossRow(1, 1.0, None, float("nan"))], [LossRow(1, 1.0, 2.0, None)]]
)
def test_few_or_useless_losses_still_make_a_plot(tmp_path: Path, rows: list[LossRow]) -> None:
    plot_losses("full finetune", rows, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 0


def test_the_same_losses_give_the_same_drawing() -> None:
    assert losses_svg("LoRA haiku", LOSSES) == losses_svg("LoRA haiku", LOSSES)


def test_two_experts_are_both_shown_where_one_weight_does_not_follow_from_the_other() -> None:
    rows = [
        WeightRow("h.0.attn.c_attn", "haiku", expert, weight)
        for expert, weight in (("a", 0.9), ("b", 0.8))
    ]
    assert [each.expert for each in weight_heatmap(rows).maps] == ["a", "b"]
    summing = [rows[0], replace(rows[1], weight=0.1)]
    assert [each.expert for each in weight_heatmap(summing).maps] == ["a"]


def test_the_strength_of_a_weight_is_its_way_from_even() -> None:
    heatmap = weight_heatmap(weights(["h.0.attn.c_attn"], ("a", "b", "c", "d")))
    strengths = [heatmap.strength(weight) for weight in (0.0, 0.125, 0.25, 0.625, 1.0, 1.5)]
    assert strengths == [-100, -50, 0, 50, 100, 100]
    alone = weight_heatmap(weights(["h.0.attn.c_attn"], ("a",)))
    assert [alone.strength(weight) for weight in (0.5, 1.0)] == [-50, 0]
