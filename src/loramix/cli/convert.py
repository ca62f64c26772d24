"""`export` and `import`, `push` and `pull`: mixtures to and from other forms and places."""

from collections.abc import Sequence
from pathlib import Path

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries
from loramix.errors import MixtureError


@click.command()
@options.mixture
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="EXPERT=VALUE",
    help="The weight of an expert; the others get 0. Once for every expert.",
)
@click.option("--prompt", help="Use the weights that the gates give this prompt.")
@options.task
@click.option("--merged", is_flag=True, help="Write a whole model instead of an adapter.")
@options.dtype
def export(
    mixture: str,
    out: Path,
    weights: tuple[str, ...],
    prompt: str | None,
    task: str | None,
    merged: bool,
    dtype: str,
) -> None:
    """Write a MIXTURE at fixed weights as a PEFT adapter or a model.

    Any program that loads PEFT adapters or transformers models can use the folder OUT.

    \b
    Examples:
      loramix export results/demo/cgm/models adapter --weight haiku=0.7 --weight title=0.3
      loramix export results/demo/cgm/models adapter --prompt "rain" --task haiku
      loramix export results/demo/cgm/models model --weight haiku=1 --merged
    """
    from loramix.mixture.model import MixtureModel

    if bool(weights) == (prompt is not None):
        raise MixtureError(
            "export needs either --weight EXPERT=VALUE, once or more, or --prompt TEXT"
        )
    silence_libraries()
    model = MixtureModel.from_pretrained(mixture, dtype=dtype)
    inputs = None if prompt is None else model.text_inputs(prompt, task=task)
    model.export(out, weights=_pairs(weights) if weights else None, prompt=inputs, merged=merged)
    if merged:
        model.tokenizer.save_pretrained(out)
    click.echo(out)


@click.command("import")
@click.argument("kind", type=click.Choice(["loralib"]))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The base model: a name, a folder or a Hub id.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="An expert's checkpoint; in the order that the gates were trained with.",
)
@click.option(
    "--gates",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint that holds the gates.",
)
@click.option("--alpha", default=1.0, show_default=True, help="The lora_alpha of training.")
def import_(
    kind: str, out: Path, base: str, experts: tuple[str, ...], gates: Path, alpha: float
) -> None:
    """Make a mixture from loralib checkpoints.

    Writes a mixture with the reference gate to folder OUT.

    \b
    Examples:
      loramix import loralib my-mixture --base google-t5/t5-large \\
        --expert haiku=haiku.pt --expert title=title.pt --gates gates.pt
    """
    from loramix.cli.loralib import import_mixture

    silence_libraries()
    import_mixture(base, _files(experts), gates, out, alpha=alpha)
    click.echo(out)


@click.command()
@click.argument("mixture", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push(mixture: Path, repository: str, private: bool) -> None:
    """Upload a MIXTURE folder to the Hugging Face Hub.

    REPOSITORY is user/name. Log in first, with `hf auth login`.

    \b
    Examples:
      loramix push results/demo/cgm/models me/my-mixture --private
    """
    from loramix.storage import format as mixtures

    silence_libraries()
    click.echo(mixtures.push(mixture, repository, private=private or None))


@click.command()
@click.argument("repository")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--revision", help="A branch, tag or commit.")
def pull(repository: str, out: Path, revision: str | None) -> None:
    """Download a mixture from the Hugging Face Hub.

    Writes the mixture in REPOSITORY (user/name) to folder OUT.

    \b
    Examples:
      loramix pull me/my-mixture my-mixture --revision main
    """
    from loramix.storage import format as mixtures

    silence_libraries()
    mixtures.pull(repository, out, revision=revision)
    click.echo(out)


def _pairs(texts: Sequence[str]) -> dict[str, float]:
    """Return the names and numbers of `name=number` texts; raises MixtureError for any other
    text.
    """
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise MixtureError(
                f"'{text}' is not a weight; write EXPERT=VALUE, such as haiku=0.7"
            ) from error
    return found


def _files(texts: Sequence[str]) -> dict[str, str]:
    """Return the names and files of `name=file` texts; raises MixtureError for any other text."""
    files = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not separator:
            raise MixtureError(
                f"'{text}' is not an expert; write NAME=FILE, such as haiku=haiku.pt"
            )
        files[name] = file
    return files
