"""Arguments and options that several commands share."""

from pathlib import Path

import click

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
