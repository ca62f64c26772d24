"""The command line: results go to standard output, everything else to standard error."""

import sys
from pathlib import Path

import click

from loramix import __version__
from loramix.cli import ask, chat, check, convert, mix, options, serve, sweep
from loramix.cli.display import show_messages, silence_libraries
from loramix.cli.ending import ended, quiet_logging

# Libraries are imported inside the commands: `--help` must not wait for torch. In the docstrings,
# a line with \b alone tells click to leave the lines of the examples as they are.


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Several LoRA adapters as one language model that decides, for every input, how much of each
    to use.

    \b
    Examples:
      loramix mix --help               adapters that you have, as one model
      loramix recipes                  what can be run
      loramix run demo                 train two adapters and a mixture of them
      loramix explain results/demo/cgm/models "write a haiku about rain"
      loramix run --help               the options of a command, with examples
    """


@cli.command()
@options.recipe
@options.overrides
@click.option(
    "--stage",
    help="Run this stage and those that it needs, nothing else: prepare, benchmark, finetune, "
    "lora, gate, evaluate or report.",
)
@options.run_folder
@options.wait
@options.cluster
@options.step_resources
def run(
    recipe: str,
    overrides: tuple[str, ...],
    stage: str | None,
    out: Path | None,
    wait: bool,
    cluster: str | None,
    step_resources: tuple[str, ...],
) -> None:
    """Run a RECIPE: a shipped one by name, or a YAML file.

    Finished steps are skipped, so the same command resumes a killed run. After a changed setting,
    only the steps that depend on it are redone.

    \b
    Examples:
      loramix run demo
      loramix run demo --stage lora
      loramix run demo lora.epochs=3 gate.hidden=16 --out results/longer
      loramix run demo --cluster --step-resources lora=2cpu
    """
    from loramix.experiment import extras
    from loramix.experiment.reading import load_recipe
    from loramix.experiment.recipe import STAGES

    does = options.executor(cluster, step_resources, STAGES)
    resolved = load_recipe(recipe, overrides)
    extras.require(*extras.needed(stage), *(("cluster",) if cluster else ()))
    silence_libraries()
    from loramix.experiment import runner
    from loramix.experiment.processes import processes

    root = out or Path("results") / resolved.name
    done = runner.run(resolved, root, stage=stage, wait=wait, executor=does)
    if not processes().first:
        return
    click.echo(done.root)
    if stage in (None, "report"):
        from loramix.cli.tables import show_scores

        show_scores(done.root)
        click.echo(
            f"\nReport:  {done.root / 'report.html'}\n"
            f'Next:    loramix explain {done.folder("gate") / "models"} "PROMPT"',
            err=True,
        )


@cli.command()
@options.recipe
@options.overrides
@options.run_folder
@options.wait
@options.cluster
@options.step_resources
def compare(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    wait: bool,
    cluster: str | None,
    step_resources: tuple[str, ...],
) -> None:
    """Compare a RECIPE's mixtures with other ways to use its experts.

    Models that a run has trained in the same folder are used again; a killed comparison resumes.

    \b
    Examples:
      loramix compare demo
      loramix compare demo 'comparison.seeds=[0]'
      loramix compare ablate-context --out results/haiku-title-compare
      loramix compare demo --cluster 10.0.0.1:6379 --step-resources compare=1gpu
    """
    from loramix.experiment import extras
    from loramix.experiment.reading import load_recipe

    does = options.executor(cluster, step_resources, ("prepare", "finetune", "lora", "compare"))
    resolved = load_recipe(recipe, overrides)
    searched = ("comparison",) if "lorahub" in resolved.comparison.models else ()
    extras.require(*extras.needed(None), *searched, *(("cluster",) if cluster else ()))
    silence_libraries()
    from loramix.cli.tables import show_comparison
    from loramix.comparison.compare import compare as compare_models

    root = out or Path("results") / resolved.name
    folder = compare_models(resolved, root, wait=wait, executor=does)
    click.echo(folder)
    show_comparison(folder)
    click.echo(f"\nReport:  {folder / 'report.html'}", err=True)


@cli.command()
def recipes() -> None:
    """List the shipped recipes.

    \b
    Examples:
      loramix recipes
    """
    from loramix.experiment.reading import shipped

    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        click.echo(f"{name:24} {first.lstrip('# ')}")
    click.echo("\nNext:    loramix check RECIPE", err=True)


for command in (
    sweep.sweep,
    *(mix.mix, mix.add, mix.remove, chat.chat, serve.serve),
    *(check.check, ask.generate, ask.explain_),
    *(convert.export, convert.import_, convert.push, convert.pull),
    check.env,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line, and exit as `loramix.cli.ending` says."""
    show_messages()
    quiet_logging()
    sys.exit(ended(lambda: cli(standalone_mode=False)))
