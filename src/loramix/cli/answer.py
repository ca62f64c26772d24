"""`generate` and `explain`: ask a saved mixture."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from loramix.mixture import MixtureModel

if TYPE_CHECKING:
    from torch import Tensor

_BAR = 10  # cells of a whole bar: a layer's full name and two experts fit into 80 columns


def generate_text(path: str, prompt: str, max_new_tokens: int) -> str:
    """Return the mixture's greedy answer to a prompt."""
    mixture, inputs, tokenizer = _load(path, prompt)
    tokens = mixture.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = tokens[0] if mixture.base.config.is_encoder_decoder else tokens[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()  # type: ignore[attr-defined]


def explain_prompt(path: str, prompt: str) -> None:
    """Print every layer's weights for a prompt, and their mean, as bars."""
    mixture, inputs, _ = _load(path, prompt)
    weights = {name: weights_BE[0].tolist() for name, weights_BE in mixture.weights(**inputs).items()}
    mean = [sum(column) / len(weights) for column in zip(*weights.values(), strict=True)]
    table = Table(Column("layer", no_wrap=True), *mixture.expert_names, title=f"weights for {prompt!r}")
    for name, row in weights.items():
        table.add_row(name, *(_bar(value) for value in row))
    table.add_section()
    table.add_row("mean", *(_bar(value) for value in mean))
    Console().print(table)


def _load(path: str, prompt: str) -> "tuple[MixtureModel, dict[str, Tensor], object]":
    from loramix.bases import load_tokenizer

    mixture = MixtureModel.from_pretrained(path)
    tokenizer = load_tokenizer(mixture.base_name, revision=mixture.revision)
    text = prompt if mixture.base.config.is_encoder_decoder else prompt + "\n"
    inputs = tokenizer(text, return_tensors="pt")
    return mixture, {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}, tokenizer


def _bar(value: float) -> str:
    return f"{value:.2f} {'█' * round(value * _BAR)}"
