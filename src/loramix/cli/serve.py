"""`serve`: a saved mixture behind OpenAI's API, with a playground."""

from pathlib import Path

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries
from loramix.errors import MissingExtraError


@click.command()
@options.mixture
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8000, show_default=True, help="The port to listen at.")
@click.option("--name", help="The model's name in the API; the folder's by default.")
@click.option(
    "--api-key",
    envvar="LORAMIX_API_KEY",
    help="Ask every client for this key. LORAMIX_API_KEY keeps it from those who can list the "
    "machine's processes.",
)
@click.option("--rows", default=16, show_default=True, help="Answers generated together, at most.")
@click.option("--waiting", default=256, show_default=True, help="Answers that wait, at most.")
@click.option("--prompt-tokens", default=4096, show_default=True, help="The longest prompt.")
@click.option("--new-tokens", default=1024, show_default=True, help="The longest answer.")
@click.option("--seconds", default=300.0, show_default=True, help="The longest time of an answer.")
@options.dtype
def serve(
    mixture: str,
    host: str,
    port: int,
    name: str | None,
    api_key: str | None,
    rows: int,
    waiting: int,
    prompt_tokens: int,
    new_tokens: int,
    seconds: float,
    dtype: str,
) -> None:
    """Serve a MIXTURE (a folder or Hub id) at http://127.0.0.1:8000/v1, as OpenAI's API does.

    Answers that are asked for together are generated together, each as `loramix generate` would.
    The models are the mixture, each expert alone as NAME:EXPERT, and NAME:base. A page to try it is
    at http://127.0.0.1:8000/.

    \b
    Examples:
      loramix serve my-mixture
      LORAMIX_API_KEY=secret loramix serve my-mixture --host 0.0.0.0 --port 8080
    """
    if api_key == "":
        raise click.BadParameter("is empty, and so keeps nobody out", param_hint="--api-key")
    silence_libraries()
    try:
        from loramix.serving import server
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    from loramix.bases.devices import accelerator
    from loramix.mixture.model import MixtureModel
    from loramix.serving.jobs import Limits

    if api_key is None and not server.is_loopback(host):
        click.echo(f"{host} can be reached by others, and no --api-key keeps them out", err=True)
    model = MixtureModel.from_pretrained(mixture, dtype=dtype).to(accelerator())
    name = name or Path(mixture).resolve().name
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{name}: http://{shown}:{port}/v1, playground: http://{shown}:{port}/", err=True)
    limits = Limits(
        rows=rows,
        waiting=waiting,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seconds=seconds,
    )
    server.serve(model, name, host=host, port=port, api_key=api_key, limits=limits)
