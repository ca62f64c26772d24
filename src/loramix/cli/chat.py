"""`chat`: talk to a saved mixture, and see which experts answer."""

import sys
from typing import TYPE_CHECKING

import click

from loramix.cli import options
from loramix.cli.ask import answer
from loramix.cli.display import silence_libraries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from loramix.mixture.model import MixtureModel

_SHOWN = 0.01  # weights below are left out
_END, _FORGET = ("/quit", "/exit"), "/new"


@click.command()
@options.mixture
@click.option(
    "--max-new-tokens", default=256, show_default=True, help="The longest answer, in tokens."
)
@options.task
@options.dtype
def chat(mixture: str, max_new_tokens: int, task: str | None, dtype: str) -> None:
    """Talk to a MIXTURE, and see each answer's weights.

    MIXTURE is a folder or Hub id. Reads one prompt per line. A mixture whose prompts go through a
    chat template keeps the conversation, and /new forgets it; any other takes each line by itself.
    /quit ends.

    \b
    Examples:
      loramix chat my-mixture
      echo "list all customers" | loramix chat my-mixture
    """
    from loramix.bases.devices import accelerator
    from loramix.mixture.model import MixtureModel

    silence_libraries()
    model = MixtureModel.from_pretrained(mixture, dtype=dtype).to(accelerator())
    kept = "the conversation is kept" if model.prompting.chat else "each line is a prompt by itself"
    experts = ", ".join(model.expert_names)
    click.echo(f"experts: {experts}; their weights follow each answer", err=True)
    click.echo(f"{kept}; /quit ends", err=True)
    turns: list[dict[str, str]] = []
    while (line := _line()) is not None:
        if line in _END:
            break
        if line == _FORGET:
            turns = []
            continue
        if not line.strip():
            continue
        if model.prompting.chat:
            turns.append({"role": "user", "content": model.prompting.render(line, task)})
            inputs = model.text_inputs(turns)
        else:
            inputs = model.text_inputs(line, task=task)
        said = answer(model, inputs, max_new_tokens)
        click.echo(said)
        click.echo(f"[{_weights(model, inputs)}]\n", err=True)
        if turns:
            turns.append({"role": "assistant", "content": said})


def _line() -> str | None:
    """Return the next line; None at the end of the input."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _weights(model: "MixtureModel", inputs: "Mapping[str, Tensor]") -> str:
    """Return the experts' mean weights over all layers, in words, the largest first."""
    import torch

    layers = [each[0] for each in model.mean_weights(**inputs).values()]
    means = dict(zip(model.expert_names, torch.stack(layers).mean(0).tolist(), strict=True))
    ordered = sorted(means.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {weight:z.2f}" for name, weight in ordered if weight >= _SHOWN)
