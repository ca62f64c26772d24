"""`sweep`: a recipe with every combination of some settings."""

from pathlib import Path

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries


@click.command()
@options.recipe
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE[,VALUE]...]...")
@click.option(
    "--stage",
    help="The last stage to run: finetune, lora or gate. All, with test scores, if not given.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder of the runs; results/<name of the recipe>-sweep by default.",
)
@options.wait
@options.cluster
@options.step_resources
def sweep(
    recipe: str,
    settings: tuple[str, ...],
    stage: str | None,
    out: Path | None,
    wait: bool,
    cluster: str | None,
    step_resources: tuple[str, ...],
) -> None:
    """Run a RECIPE with every combination of some settings.

    Each combination gets a run folder of its own; what several have in common is done once. One
    table and one page are left at the end, ordered by validation loss. The same command resumes a
    killed sweep, and does what is new in a changed one.

    \b
    Examples:
      loramix sweep demo gate.hidden=4,8,16 gate.learning_rate=1e-3,3e-3
      loramix sweep demo lora.rank=4,8 lora.epochs=3 --stage lora
      loramix sweep demo gate.hidden=4,8 --cluster --step-resources gate=1gpu
    """
    from loramix.experiment import extras
    from loramix.experiment.recipe import STAGES
    from loramix.experiment.sweep.settings import read_sweep

    does = options.executor(cluster, step_resources, STAGES)
    combined = read_sweep(recipe, settings)
    extras.require(*extras.needed(stage), *(("cluster",) if cluster else ()))
    silence_libraries()
    from loramix.cli.tables import show_sweep
    from loramix.experiment.sweep.results import PAGE
    from loramix.experiment.sweep.runs import sweep as run_all

    root = out or Path("results") / f"{combined[0].recipe.name}-sweep"
    run_all(combined, root, stage=stage, wait=wait, executor=does)
    click.echo(root)
    show_sweep(root, list(combined[0].values))
    click.echo(f"\nReport:  {root / PAGE}", err=True)
