"""Arguments and options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loramix.experiment.executors.job import Executor

recipe = click.argument("recipe")
overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_folder = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder; results/<name of the recipe> by default.",
)
wait = click.option(
    "--wait", is_flag=True, help="Wait while another process writes to the same folder."
)
cluster = click.option(
    "--cluster",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="local",
    help="Do steps that need nothing of each other side by side on Ray: on this machine, or on the "
    "cluster at HOST:PORT ('auto': the one that this machine is part of).",
)
step_resources = click.option(
    "--step-resources",
    multiple=True,
    metavar="STAGE=AMOUNT,…",
    help="What each step of a stage takes of a machine of the cluster, such as lora=1gpu or "
    "gate=4cpu,1gpu,24gb; one cpu, and one gpu where there are any, if not given.",
)
mixture = click.argument("mixture")
prompt = click.argument("prompt")
task = click.option("--task", help="Put the prompt into the prompt template of this task.")
dtype = click.option(
    "--dtype",
    default="float32",
    show_default=True,
    help="Number format of the base: float32, bfloat16, float16, fast (bfloat16 where the hardware "
    "multiplies in it) or auto (as stored).",
)


def executor(
    address: str | None, resources: "Sequence[str]", stages: "Sequence[str]"
) -> "Executor":
    """Return who does the steps of a command, by its options `cluster` and `step_resources`.

    stages: those that the command has.
    """
    from loramix.cli.display import show_in_worker
    from loramix.experiment.executors.in_order import in_order
    from loramix.experiment.executors.on_ray import OnRay, check_address
    from loramix.experiment.executors.resources import read_resources

    if address is None:
        if resources:
            raise click.UsageError(
                "--step-resources says what steps take of a cluster; add --cluster"
            )
        return in_order
    check_address(address)
    return OnRay(address, read_resources(resources, stages), show_in_worker)
