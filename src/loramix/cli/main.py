"""The command line: results go to standard output, everything else to standard error."""

import logging
import sys
from pathlib import Path

import click

from loramix import __version__
from loramix.errors import LoramixError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Several LoRA adapters as one language model that decides, for every input, how much of each
    to use.
    """


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--stage",
    help="Run this stage and what it needs: prepare, benchmark, finetune, lora, gate, evaluate, "
    "report.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; results/<recipe name> if not given."
)
def run(recipe: str, overrides: tuple[str, ...], stage: str | None, out: Path | None) -> None:
    """Run a RECIPE (a shipped name or a YAML file). What is done already is skipped; a killed run
    goes on.
    """
    from loramix.experiment.reading import load_recipe

    resolved = load_recipe(recipe, overrides)
    _one_display()
    from loramix.experiment import runner

    layout = runner.run(resolved, out or Path("results") / resolved.name, stage=stage)
    click.echo(layout.root)
    if stage in (None, "report"):
        from loramix.cli.tables import show_scores

        show_scores(layout.root)
        click.echo(
            f"\nReport:  {layout.root / 'report.html'}\n"
            f'Next:    loramix explain {layout.folder("gate") / "models"} "PROMPT"',
            err=True,
        )


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; results/<recipe name> if not given."
)
def compare(recipe: str, overrides: tuple[str, ...], out: Path | None) -> None:
    """Compare RECIPE's mixtures with everything else that could do their work, on several test
    sets.

    What a run has left in the folder is used; a killed comparison goes on.
    """
    from loramix.experiment.reading import load_recipe

    resolved = load_recipe(recipe, overrides)
    _one_display()
    from loramix.cli.tables import show_comparison
    from loramix.experiment import runner

    folder = runner.compare(resolved, out or Path("results") / resolved.name)
    click.echo(folder)
    show_comparison(folder)
    click.echo(f"\nReport:  {folder / 'report.html'}", err=True)


@cli.command()
def recipes() -> None:
    """List the recipes that come with loramix."""
    from loramix.experiment.reading import shipped

    for name, path in shipped().items():
        click.echo(f"{name:24} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Show what a run of RECIPE would do, without doing it."""
    from loramix.cli.check import describe
    from loramix.experiment.reading import load_recipe

    _one_display()
    click.echo(describe(load_recipe(recipe, overrides)))


_task = click.option("--task", help="Put PROMPT into this task's prompt template, as in training.")
_dtype = click.option(
    "--dtype",
    default="float32",
    show_default=True,
    help="Of the base: bfloat16, float16, fast, or auto (as stored).",
)


@cli.command()
@click.argument("mixture")
@click.argument("prompt")
@_task
@click.option("--max-new-tokens", default=64, show_default=True)
@_dtype
def generate(mixture: str, prompt: str, task: str | None, max_new_tokens: int, dtype: str) -> None:
    """Let a MIXTURE (a folder or Hub id) answer PROMPT."""
    from loramix.cli.ask import generate_text

    _one_display()
    click.echo(
        generate_text(mixture, prompt, task=task, max_new_tokens=max_new_tokens, dtype=dtype)
    )


@cli.command()
@click.argument("mixture")
@click.argument("prompt")
@_task
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with the same to this file.",
)
@_dtype
def explain(mixture: str, prompt: str, task: str | None, html: Path | None, dtype: str) -> None:
    """Show how much of each expert a MIXTURE (a folder or Hub id) uses for PROMPT, layer by
    layer.
    """
    from loramix.cli.ask import explain_prompt

    _one_display()
    explain_prompt(mixture, prompt, task=task, page=html, dtype=dtype)
    if html is not None:
        click.echo(f"Page:    {html}", err=True)


@cli.command()
@click.argument("mixture")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="EXPERT=VALUE",
    help="An expert's weight; others get 0.",
)
@click.option("--prompt", help="Take the weights that the gates give this prompt.")
@_task
@click.option("--merged", is_flag=True, help="Write a whole model instead of an adapter.")
@_dtype
def export(
    mixture: str,
    out: Path,
    weights: tuple[str, ...],
    prompt: str | None,
    task: str | None,
    merged: bool,
    dtype: str,
) -> None:
    """Write a MIXTURE at fixed weights to folder OUT: an ordinary PEFT adapter, or a merged
    model.
    """
    from loramix.cli.convert import export_mixture

    _one_display()
    export_mixture(
        mixture, out, weights=weights, prompt=prompt, task=task, merged=merged, dtype=dtype
    )
    click.echo(out)


@cli.command("import")
@click.argument("kind", type=click.Choice(["loralib"]))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The base model: a name, a folder or a Hub id.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="In the gates' order.",
)
@click.option(
    "--gates",
    required=True,
    type=click.Path(path_type=Path),
    help="The file with the gates' parameters.",
)
@click.option("--alpha", default=1.0, show_default=True, help="loralib's lora_alpha.")
def import_(
    kind: str, out: Path, base: str, experts: tuple[str, ...], gates: Path, alpha: float
) -> None:
    """Write a mixture with the reference gate to folder OUT, from checkpoints in loralib's form."""
    from loramix.cli.convert import import_loralib

    _one_display()
    import_loralib(out, base=base, experts=experts, gates=gates, alpha=alpha)
    click.echo(out)


@cli.command()
@click.argument("mixture", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repository")
@click.option("--private", is_flag=True, help="Let nobody else see a new repository.")
def push(mixture: Path, repository: str, private: bool) -> None:
    """Upload the MIXTURE in a folder to a REPOSITORY (user/name) of the Hugging Face Hub."""
    from loramix.storage import hub

    _one_display()
    click.echo(hub.push(mixture, repository, private=private or None))


@cli.command()
@click.argument("repository")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--revision", help="A branch, tag or commit.")
def pull(repository: str, out: Path, revision: str | None) -> None:
    """Copy the mixture in a REPOSITORY of the Hugging Face Hub to folder OUT."""
    from loramix.storage import hub

    _one_display()
    hub.pull(repository, out, revision=revision)
    click.echo(out)


@cli.command()
def env() -> None:
    """Print versions and devices, for a bug report."""
    import platform

    import torch

    from loramix.bases.loading import number_format
    from loramix.experiment.runner import versions

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    for name, value in {
        "python": platform.python_version(),
        **versions(),
        "device": device,
        "fast format": number_format("fast"),
    }.items():
        click.echo(f"{name:14} {value}")


def _one_display() -> None:
    """Leave progress to the display of loramix: silence the bars of the libraries, downloads
    aside.
    """
    import warnings

    import datasets
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    # transformers switches these off as well, and a download may take minutes
    enable_progress_bars()
    logging.getLogger("transformers.trainer_utils").setLevel(
        logging.ERROR
    )  # on file systems without exact times
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
    )  # asked by PEFT


def main() -> None:
    """Run the command line; a known error is one clean message and exit status 1."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("loramix").addHandler(handler)
    logging.getLogger("loramix").setLevel(logging.INFO)
    logging.getLogger("loramix").propagate = False
    try:
        cli(standalone_mode=True)
    except LoramixError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
