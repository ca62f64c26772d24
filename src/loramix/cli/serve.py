"""`serve`: a saved mixture behind OpenAI's API, with a playground or on vLLM."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from loramix.cli import options
from loramix.cli.display import silence_libraries
from loramix.errors import MissingExtraError

_EMBEDDED_ALONE = ("waiting", "seconds")  # options


@click.command()
@options.mixture
@click.argument("vllm_arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--engine",
    type=click.Choice(["embedded", "vllm"]),
    default="embedded",
    show_default=True,
    help="vllm: vLLM's own server, from the extra `vllm`.",
)
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
@click.pass_context
def serve(
    context: click.Context,
    mixture: str,
    vllm_arguments: Sequence[str],
    engine: str,
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
    """Serve a MIXTURE (a folder or Hub id) by OpenAI's API.

    The API is at http://127.0.0.1:8000/v1, a page to try it at http://127.0.0.1:8000/. The models
    are the mixture, each expert alone as NAME:EXPERT, and NAME:base. Answers that are asked for
    together are generated together, each as `loramix generate` would. With --engine vllm, vLLM's
    server takes the place of this one, without such a page; what follows -- is handed to it.

    \b
    Examples:
      loramix serve my-mixture
      LORAMIX_API_KEY=secret loramix serve my-mixture --host 0.0.0.0 --port 8080
      loramix serve my-mixture --engine vllm -- --tensor-parallel-size 2
    """
    if api_key == "":
        raise click.BadParameter("is empty, and so keeps nobody out", param_hint="--api-key")
    silence_libraries()
    if engine == "vllm":
        from loramix.serving.vllm.settings import settings

        _refuse_set(context, _EMBEDDED_ALONE)
        found = settings(mixture, name=name, tokens=prompt_tokens + new_tokens, dtype=dtype)
        _become_vllm(found, vllm_arguments, host=host, port=port, api_key=api_key, rows=rows)
        return
    if vllm_arguments:
        raise click.UsageError(f"'{vllm_arguments[0]}' is for vLLM; add --engine vllm")
    try:
        from loramix.serving import server
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    from loramix.bases.devices import accelerator
    from loramix.mixture.model import MixtureModel
    from loramix.serving.jobs import Limits

    _warn_of_strangers(host, api_key)
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


def _become_vllm(
    found: Mapping[str, object],
    more: Sequence[str],
    *,
    host: str,
    port: int,
    api_key: str | None,
    rows: int,
) -> None:
    """Become vLLM's server, which then gets this process's signals."""
    from loramix.serving.vllm.settings import ENVIRONMENT, command

    arguments = command(found, host=host, port=port, rows=rows, more=more)
    _warn_of_strangers(host, api_key)
    variables = {**os.environ, **ENVIRONMENT}
    if api_key is not None:  # in the environment, where those who list processes do not see it
        variables["VLLM_API_KEY"] = api_key
    os.execve(arguments[0], arguments, variables)


def _refuse_set(context: click.Context, names: Sequence[str]) -> None:
    """Raise UsageError for options that were set and mean nothing to vLLM."""
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            shown = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{shown} is of the embedded engine; what vLLM has of its own goes behind --, as "
                "in -- --tensor-parallel-size 2"
            )


def _warn_of_strangers(host: str, api_key: str | None) -> None:
    from loramix.serving.hosts import is_loopback

    if api_key is None and not is_loopback(host):
        click.echo(f"{host} can be reached by others, and no --api-key keeps them out", err=True)
