"""`check`: what a run would do. `env`: with which versions and devices."""

from typing import TYPE_CHECKING

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loramix.data.samples import Prepared
    from loramix.data.tasks import Task
    from loramix.data.tokens.batches import Encoded
    from loramix.experiment.recipe import Recipe

MEASURED = 1000  # samples of a task, for how many are cut
SHOWN = 80  # characters of a text in an example


@click.command()
@options.recipe
@options.overrides
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Show what a run of RECIPE would do, without doing it.

    Prints every setting, one rendered sample per task, parameter counts and an estimate of the
    memory that training takes.

    \b
    Examples:
      loramix check demo
      loramix check my-recipe.yaml gate.activation=sigmoid
    """
    from loramix.experiment.reading import load_recipe

    silence_libraries()
    resolved = load_recipe(recipe, overrides)
    click.echo("\n".join([resolved.to_yaml(), *_samples(resolved), _sizes(resolved)]))


@click.command()
def env() -> None:
    """Print versions and devices, for a bug report.

    \b
    Examples:
      loramix env
    """
    import platform

    import torch

    from loramix.bases.devices import number_format
    from loramix.experiment.runner import versions

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    found = {"python": platform.python_version(), **versions()}
    found |= {"device": device, "fast format": number_format("fast")}
    for name, value in found.items():
        click.echo(f"{name:14} {value}")


def _samples(recipe: "Recipe") -> list[str]:
    """Return what every task reads: its format, the counts and examples of cleaning, and its first
    sample as it is trained on.
    """
    from loramix.bases.loading import load_config, load_tokenizer
    from loramix.data.samples import prepare
    from loramix.data.tokens.encoding import encode

    tokenizer = load_tokenizer(recipe.base.name, revision=recipe.base.revision)
    causal = not load_config(recipe.base.name, revision=recipe.base.revision).is_encoder_decoder
    cleaned = prepare(recipe.tasks, samples=recipe.samples, seed=recipe.seed)
    shown = []
    for task, prepared in zip(recipe.tasks, cleaned.values(), strict=True):
        encoded = [
            encode(
                tokenizer, task, sample.input, sample.target, causal=causal, chat=recipe.base.chat
            )
            for sample in prepared.samples[:MEASURED]
        ]
        counts = ", ".join(f"{count:,} {name}" for name, count in prepared.counts.items())
        first = encoded[0]
        shown += [
            f"{task.name}: {_format(task)}",
            f"  rows: {counts}",
            *(f"  {reason}, such as:  {pair}" for reason, pair in _examples(task, prepared)),
            f"  masked, not learned ({len(first.prompt)} tokens):  "
            f"{tokenizer.decode(first.prompt)!r}",
            f"  learned ({len(first.target)} tokens):  {tokenizer.decode(first.target)!r}",
            _cut(task, encoded),
        ]
    return shown


def _format(task: "Task") -> str:
    columns = [column for column in (task.input_column, task.target_column) if column is not None]
    return f"format {task.format} ({', '.join(columns)})"


def _examples(task: "Task", prepared: "Prepared") -> "Iterator[tuple[str, str]]":
    """Yield the reasons for which rows are dropped or changed, each with one of them."""
    from loramix.data.messages import plain_text

    for reason, (source, target) in prepared.examples.items():
        said = plain_text(source) if task.conversational and source else source
        source, target = (
            repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…") for text in (said, target)
        )
        yield reason.replace("_", " "), f"{source} -> {target}"


def _cut(task: "Task", encoded: "Sequence[Encoded]") -> str:
    """Return how many of the first samples are longer than the task's limits."""
    inputs = sum(sample.input_cut for sample in encoded)
    targets = sum(sample.target_cut for sample in encoded)
    return (
        f"  cut, of {len(encoded):,} samples: {inputs:,} inputs "
        f"(max_input_tokens {task.max_input_tokens}), {targets:,} targets "
        f"(max_new_tokens {task.max_new_tokens})"
    )


def _sizes(recipe: "Recipe") -> str:
    """Count parameters, and estimate the memory that training takes."""
    from loramix.bases.devices import number_format
    from loramix.experiment.given import bare_base
    from loramix.experiment.sizes import sizes

    base = bare_base(recipe.base)
    assert base is not None  # a recipe's base is there
    found = sizes(recipe, base)
    width = 4 if number_format(recipe.base.dtype) == "float32" else 2
    # bytes of a weight; those of the vocabulary are not quantised, which this leaves out
    loaded = found.base * {None: width, "8bit": 1, "4bit": 0.5}[recipe.base.quantisation]
    full = found.base * width * (2 if recipe.finetune.optimizer == "adafactor" else 4)
    return (
        f"parameters: base {found.base:,}; one adapter {found.adapter:,} in {found.layers} layers; "
        f"gates {found.gates:,}\n"
        f"memory without activations: generation {loaded / 1e9:.2f} GB, LoRA and gates "
        f"{(loaded + 4 * found.adapter * width) / 1e9:.2f} GB, full finetune "
        f"{full / 1e9:.2f} GB"
    )
