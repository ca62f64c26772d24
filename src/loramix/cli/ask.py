"""`generate` and `explain`: ask a saved mixture."""

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from loramix.bases.loading import accelerator
from loramix.mixture.model import MixtureModel
from loramix.report.explanation import Explanation, explain, explanation_page
from loramix.storage.files import write_text

_BAR = 10  # cells of a whole bar: a layer's full name and two experts fit into 80 columns


def generate_text(
    path: str, text: str, *, task: str | None, max_new_tokens: int, dtype: str
) -> str:
    """Return the mixture's greedy answer to a prompt, or to the input of a task."""
    mixture = MixtureModel.from_pretrained(path, dtype=dtype).to(accelerator())
    inputs = mixture.text_inputs(text, task=task)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    tokens = mixture.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
    )
    new = tokens[0] if mixture.config.is_encoder_decoder else tokens[0, ids.shape[1] :]
    return str(mixture.tokenizer.decode(new, skip_special_tokens=True)).strip()


def explain_prompt(
    path: str, text: str, *, task: str | None, page: Path | None, dtype: str
) -> None:
    """Print every layer's weights for a prompt, and their mean, as bars; write them as an HTML page
    if asked.
    """
    explanation = explain(
        MixtureModel.from_pretrained(path, dtype=dtype).to(accelerator()), text, task=task
    )
    console = Console()
    console.print(_table("layer", explanation, {**explanation.layers, "mean": explanation.mean}))
    if explanation.tokens:
        console.print(
            _table(
                "token", explanation, dict(enumerate(weights for _, weights in explanation.tokens))
            )
        )
    if page is not None:
        write_text(page, explanation_page(explanation))


def _table(
    what: str, explanation: Explanation, rows: dict[str, list[float]] | dict[int, list[float]]
) -> Table:
    table = Table(
        Column(what, no_wrap=True),
        *explanation.experts,
        title=Text(f"weights for {explanation.prompt!r}"),
    )
    for key, weights in rows.items():
        if key == "mean":
            table.add_section()
        name = repr(explanation.tokens[key][0]) if isinstance(key, int) else key
        table.add_row(
            Text(name), *(f"{weight:.2f} {'█' * round(weight * _BAR)}" for weight in weights)
        )
    return table
