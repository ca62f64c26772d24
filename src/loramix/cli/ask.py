"""`generate` and `explain`: ask a saved mixture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from loramix.mixture.explanation import Explanation
    from loramix.mixture.model import MixtureModel


@click.command()
@options.mixture
@options.prompt
@options.task
@click.option(
    "--max-new-tokens", default=64, show_default=True, help="The longest answer, in tokens."
)
@options.dtype
def generate(mixture: str, prompt: str, task: str | None, max_new_tokens: int, dtype: str) -> None:
    """Print the answer of a MIXTURE (a folder or Hub id) to PROMPT.

    \b
    Examples:
      loramix generate results/demo/cgm/models "write a haiku about rain"
      loramix generate results/demo/cgm/models "rain" --task haiku --max-new-tokens 32
    """
    from loramix.bases.devices import accelerator
    from loramix.mixture.model import MixtureModel

    silence_libraries()
    model = MixtureModel.from_pretrained(mixture, dtype=dtype).to(accelerator())
    click.echo(answer(model, model.text_inputs(prompt, task=task), max_new_tokens))


def answer(model: "MixtureModel", inputs: "Mapping[str, Tensor]", max_new_tokens: int) -> str:
    """Return the mixture's answer to one prompt, always the same one."""
    from loramix.data.tokens.answers import end_ids, read_answer

    ids, chat = inputs["input_ids"], model.prompting.chat
    ends = end_ids(model.tokenizer, model.generation_config, chat=chat)
    tokens = model.generate(
        input_ids=ids,
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
    )
    # generate() returns a decoder's prompt too, and an encoder-decoder's start token
    new = tokens[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()
    return read_answer(model.tokenizer, new, ends, chat=chat).text


@click.command("explain")
@options.mixture
@options.prompt
@options.task
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the weights to this file, as a page.",
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw the weights into this file, as a picture for a light or dark page.",
)
@options.dtype
def explain_(
    mixture: str, prompt: str, task: str | None, html: Path | None, svg: Path | None, dtype: str
) -> None:
    """Show how much of each expert a MIXTURE uses for PROMPT.

    Prints the weights that the gate of every layer gives the experts. MIXTURE is a folder or Hub
    id.

    \b
    Examples:
      loramix explain results/demo/cgm/models "write a haiku about rain"
      loramix explain results/demo/cgm/models "rain" --task haiku --html why.html
      loramix explain my-mixture "write a haiku about rain" --svg routing.svg
    """
    from loramix.bases.devices import accelerator
    from loramix.cli.tables import show_weights
    from loramix.mixture.explanation import explain
    from loramix.mixture.model import MixtureModel
    from loramix.report.routing import RoutedPrompt, routing_svg
    from loramix.storage.files import write_text

    silence_libraries()
    model = MixtureModel.from_pretrained(mixture, dtype=dtype).to(accelerator())
    explanation = explain(model, prompt, task=task)
    show_weights(explanation)
    if html is not None:
        write_text(html, _page(explanation))
        click.echo(f"Page:    {html}", err=True)
    if svg is not None:
        routed = RoutedPrompt(prompt, explanation.layers, explanation.mean)
        write_text(svg, routing_svg(explanation.experts, [routed]))
        click.echo(f"Picture: {svg}", err=True)


def _page(explanation: "Explanation") -> str:
    from loramix.report.explanation import explanation_page

    return explanation_page(
        explanation.prompt,
        explanation.experts,
        layers=explanation.layers,
        mean=explanation.mean,
        tokens=explanation.tokens,
    )
