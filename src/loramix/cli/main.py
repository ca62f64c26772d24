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
    """Several LoRA adapters as one language model that decides, for every input, how much of each to use."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--stage", help="Run this stage and what it needs: prepare, benchmark, finetune, lora, gate, evaluate, report."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; results/<recipe name> if not given.")
def run(recipe: str, overrides: tuple[str, ...], stage: str | None, out: Path | None) -> None:
    """Run a RECIPE (a shipped name or a YAML file). What is done already is skipped; a killed run goes on."""
    from loramix.recipe import load_recipe

    resolved = load_recipe(recipe, overrides)
    _one_display()
    from loramix.stages import runner

    layout = runner.run(resolved, out or Path("results") / resolved.name, stage=stage)
    click.echo(layout.root)
    if stage in (None, "report"):
        from loramix.cli.scores import show_scores

        show_scores(layout.root)
        click.echo(
            f"\nReport:  {layout.root / 'report.html'}\n"
            f'Next:    loramix explain {layout.folder("gate") / "models"} "PROMPT"',
            err=True,
        )


@cli.command()
def recipes() -> None:
    """List the recipes that come with loramix."""
    from loramix.recipe import shipped

    for name, path in shipped().items():
        click.echo(f"{name:24} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Show what a run of RECIPE would do, without doing it."""
    from loramix.cli.check import describe
    from loramix.recipe import load_recipe

    _one_display()
    click.echo(describe(load_recipe(recipe, overrides)))


@cli.command()
@click.argument("mixture")
@click.argument("prompt")
@click.option("--max-new-tokens", default=64, show_default=True)
def generate(mixture: str, prompt: str, max_new_tokens: int) -> None:
    """Let the MIXTURE in a folder answer PROMPT."""
    from loramix.cli.answer import generate_text

    _one_display()
    click.echo(generate_text(mixture, prompt, max_new_tokens))


@cli.command()
@click.argument("mixture")
@click.argument("prompt")
def explain(mixture: str, prompt: str) -> None:
    """Show how much of each expert the MIXTURE uses for PROMPT, layer by layer."""
    from loramix.cli.answer import explain_prompt

    _one_display()
    explain_prompt(mixture, prompt)


@cli.command()
def env() -> None:
    """Print versions and devices, for a bug report."""
    import platform

    import torch

    from loramix.stages.runner import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    for name, value in {"python": platform.python_version(), **versions(), "device": device}.items():
        click.echo(f"{name:14} {value}")


def _one_display() -> None:
    """Leave progress to the display of loramix: silence the bars of the libraries, downloads aside."""
    import warnings

    import datasets
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # transformers switches these off as well, and a download may take minutes
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)  # on file systems without exact times
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # asked by PEFT


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
