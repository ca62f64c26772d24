"""Names and texts of strangers stand in a model card as text."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_model

from loramix import MixtureModel
from loramix.config import Prompting
from loramix.storage.card import add_measurements

ODD = [
    "<script>alert(1)</script>",
    "![x](https://x.example/x.png)",
    "a | b\n\n# Trusted by everyone\n",
    "``` \n[click](javascript:alert(1))",
    "a\r\n---\nlicense: mit\u2028x",
]


@pytest.mark.parametrize("odd", ODD)
def test_nothing_of_a_strangers_text_is_markup(
    odd: str, experts: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    mixture = MixtureModel.from_experts(tiny_model("llama"), {odd: experts("llama", ("a",))["a"]})
    mixture.base_name = odd
    mixture.prompting = Prompting(templates={odd: odd + "{input}"})
    mixture.save_pretrained(tmp_path / "saved")
    rows = [{odd: odd, "x": "1"}]
    add_measurements(tmp_path / "saved", f"name: |\n  {odd}", {odd: rows}, rows)
    card = (tmp_path / "saved" / "README.md").read_text()
    (fence,) = re.findall("^(`{3,})yaml$", card, re.MULTILINE)
    outside = card.split(f"{fence}yaml")[0] + card.rsplit(f"\n{fence}\n")[-1]
    for markup in ("<script", "![x]", "](", "\n# Trusted", "\nlicense: mit", "\u2028"):
        assert markup not in outside
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {3, 4}
