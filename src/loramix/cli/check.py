"""`check`: what a run would do. `env`: with which versions and devices."""

from typing import TYPE_CHECKING

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries

if TYPE_CHECKING:
    from loramix.experiment.recipe import Recipe


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
    """Return the first sample of every task as it is trained on, with the counts of cleaning."""
    from loramix.bases.loading import load_config, load_tokenizer
    from loramix.data.batches import encode
    from loramix.data.samples import prepare

    tokenizer = load_tokenizer(recipe.base.name, revision=recipe.base.revision)
    causal = not load_config(recipe.base.name, revision=recipe.base.revision).is_encoder_decoder
    cleaned = prepare(recipe.tasks, samples=recipe.samples, seed=recipe.seed)
    shown = []
    for task, prepared in zip(recipe.tasks, cleaned.values(), strict=True):
        sample = prepared.samples[0]
        encoded = encode(
            tokenizer, task, sample.input, sample.target, causal=causal, chat=recipe.base.chat
        )
        counts = ", ".join(f"{count:,} {name}" for name, count in prepared.counts.items())
        shown.append(
            f"{task.name}: {counts}\n"
            f"  masked, not learned ({len(encoded.prompt)} tokens):  "
            f"{tokenizer.decode(encoded.prompt)!r}\n"
            f"  learned ({len(encoded.target)} tokens):  {tokenizer.decode(encoded.target)!r}"
        )
    return shown


def _sizes(recipe: "Recipe") -> str:
    """Count parameters on the meta device, so that nothing is loaded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from loramix.bases.devices import number_format
    from loramix.bases.loading import load_config
    from loramix.experiment.stages.lora import attention_layers
    from loramix.mixture.groups import roles
    from loramix.mixture.linear import linear_shape
    from loramix.mixture.wrapping import new_gates

    config = load_config(recipe.base.name, revision=recipe.base.revision)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    model.tie_weights()
    total = sum(parameter.numel() for parameter in model.parameters())
    targets = recipe.lora.targets or attention_layers(model)
    shapes = {
        name: shape
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and (shape := linear_shape(module))
    }
    adapter = sum(recipe.lora.rank * (wide + out) for wide, out in shapes.values())
    planned = roles(model, shapes.keys(), recipe.gate.scope, None)
    modules = new_gates(model, planned, recipe.gate.config, len(recipe.tasks)).values()
    gates = sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
    width = 4 if number_format(recipe.base.dtype) == "float32" else 2
    full = total * width * (2 if recipe.finetune.optimizer == "adafactor" else 4)
    return (
        f"parameters: base {total:,}; one adapter {adapter:,} in {len(shapes)} layers; gates "
        f"{gates:,}\n"
        f"memory without activations: generation {total * width / 1e9:.2f} GB, LoRA and gates "
        f"{(total + 4 * adapter) * width / 1e9:.2f} GB, full finetune {full / 1e9:.2f} GB"
    )
