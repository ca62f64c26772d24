"""`mix`, `add` and `remove`: own adapters in, one model out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loramix.cli import options
from loramix.cli.display import silence_libraries
from loramix.config import Pooling
from loramix.errors import ExpertError

if TYPE_CHECKING:
    from loramix.assembly.examples import Examples

_experts = click.option(
    "--expert",
    "experts",
    multiple=True,
    required=True,
    metavar="NAME=ADAPTER",
    help="An adapter of PEFT: a folder, or a Hub id as owner/name[/folder][@revision].",
)
_examples = click.option(
    "--examples",
    multiple=True,
    metavar="NAME=SOURCE",
    help="Examples of an expert: a file (.jsonl, .csv, .parquet, …; of a .txt every line is a "
    "prompt), a folder or a Hub data set. 16 do well.",
)
_prompts = click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="NAME=TEMPLATE",
    help="How an expert's examples are asked, with {input} in it. Just the input, if not given.",
)
_columns = click.option(
    "--columns",
    multiple=True,
    metavar="NAME=INPUT[,TARGET]",
    help="The columns of an expert's examples, where they are not recognised.",
)
_lossy = click.option(
    "--lossy",
    multiple=True,
    metavar="PART",
    help="Leave out a part of the adapters that cannot be mixed exactly, such as dora.",
)


@click.command()
@click.argument("mixture", type=click.Path(path_type=Path))
@click.option("--base", help="The base model; the one that the adapters name, if not given.")
@_experts
@_examples
@_prompts
@_columns
@_lossy
@click.option("--chat", is_flag=True, help="Put prompts through the tokenizer's chat template.")
@click.option(
    "--first-pass/--no-first-pass",
    default=None,
    help="Read each prompt by the base alone first, and let all gates decide together, at the "
    "price of one more pass over the prompt. Done where there are examples, if not given.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "attention"]),
    help="How gates read a prompt: by the mean of its tokens, or by what asks for something in it, "
    "which they learn from the examples. The latter where they decide together by examples, if not "
    "given.",
)
@click.option(
    "--train",
    "training",
    is_flag=True,
    help="Refine the gates on the answers, in minutes; undone where held-out ones do not gain.",
)
@click.option("--overwrite", is_flag=True, help="Replace another mixture in this folder.")
@options.wait
@options.dtype
def mix(
    mixture: Path,
    base: str | None,
    experts: tuple[str, ...],
    examples: tuple[str, ...],
    prompts: tuple[str, ...],
    columns: tuple[str, ...],
    lossy: tuple[str, ...],
    chat: bool,
    first_pass: bool | None,
    pooling: Pooling | None,
    training: bool,
    overwrite: bool,
    wait: bool,
    dtype: str,
) -> None:
    """Make a MIXTURE (a folder) of adapters that you have.

    Each prompt then gets the experts that it needs. Without examples, routing comes from the
    adapters alone; with a few prompts of every expert, from what these are like. A part of the
    examples is held out for the verdict at the end; with answers, it compares losses.

    \b
    Examples:
      loramix mix my-mixture --expert sql=./sql-lora --expert legal=org/legal-lora@v2 \\
        --examples sql=questions.jsonl --examples legal=legal.csv
      loramix mix my-mixture --base org/base --expert a=./a --expert b=./b
    """
    named = _named("--expert", experts, "sql=./sql-lora")
    given = _read(named, examples, prompts, columns)
    silence_libraries()
    from loramix.assembly.assemble import Order
    from loramix.assembly.assemble import mix as make
    from loramix.cli.tables import show_verdict

    order = Order(
        named,
        given,
        base=base,
        lossy=lossy,
        dtype=dtype,
        chat=chat,
        first_pass=first_pass,
        pooling=pooling,
        training=training,
    )
    done = make(order, mixture, overwrite=overwrite, wait=wait)
    show_verdict(done.verdicts, done.warnings, done.facts)
    _end(mixture)


@click.command()
@click.argument("mixture", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_experts
@_examples
@_prompts
@_columns
@_lossy
@options.wait
@options.dtype
def add(
    mixture: Path,
    experts: tuple[str, ...],
    examples: tuple[str, ...],
    prompts: tuple[str, ...],
    columns: tuple[str, ...],
    lossy: tuple[str, ...],
    wait: bool,
    dtype: str,
) -> None:
    """Add an expert to a MIXTURE folder, from a few of its prompts.

    The new expert gets prompts like these at once, and the others keep theirs: of those, the
    mixture remembers enough. Nothing is trained.

    \b
    Examples:
      loramix add my-mixture --expert poems=./poems --examples poems=poems.jsonl
    """
    named = _named("--expert", experts, "poems=./poems")
    given = _read(named, examples, prompts, columns)
    missing = [name for name in named if name not in given]
    if missing:
        raise ExpertError(
            f"there are no examples of '{missing[0]}', by which the mixture could tell its prompts "
            f"from the others'; give some: --examples {missing[0]}=FILE"
        )
    silence_libraries()
    from loramix.assembly.assemble import add as add_one
    from loramix.cli.tables import show_verdict

    for name, source in named.items():
        done = add_one(mixture, name, source, given[name], lossy=lossy, dtype=dtype, wait=wait)
        show_verdict(done.verdicts, done.warnings, done.facts)
    _end(mixture)


@click.command()
@click.argument("mixture", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("expert")
@options.wait
@options.dtype
def remove(mixture: Path, expert: str, wait: bool, dtype: str) -> None:
    """Take an EXPERT out of a MIXTURE folder.

    The others keep their proportions.

    \b
    Examples:
      loramix remove my-mixture poems
    """
    silence_libraries()
    from loramix.assembly.assemble import remove as remove_one

    done = remove_one(mixture, expert, dtype=dtype, wait=wait)
    click.echo(f"{mixture}: {done.facts['experts']}")


def _end(mixture: Path) -> None:
    click.echo(mixture)
    click.echo(f"\nVerdict: {mixture / 'verdict.html'}\nNext:    loramix chat {mixture}", err=True)


def _read(
    experts: dict[str, str],
    sources: Sequence[str],
    prompts: Sequence[str],
    columns: Sequence[str],
) -> "dict[str, Examples]":
    """Return the examples of the experts, by name."""
    from loramix.assembly.examples import read_examples
    from loramix.assembly.fit import check_names
    from loramix.config import PLACEHOLDER

    found = _named("--examples", sources, "sql=questions.jsonl")
    templates = _named("--prompt", prompts, "sql='Write SQL: {input}'")
    chosen = _named("--columns", columns, "sql=question,query")
    for names in (found, templates, chosen):
        check_names(list(experts), names)
    for name in (*templates, *chosen):
        if name not in found:
            raise ExpertError(
                f"'{name}' has a prompt or columns and no examples; add --examples {name}=FILE"
            )
    return {
        name: read_examples(
            name,
            source,
            prompt=templates.get(name, PLACEHOLDER),
            columns=[column.strip() for column in chosen[name].split(",")]
            if name in chosen
            else (),
        )
        for name, source in found.items()
    }


def _named(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    """Return the names and values of `NAME=VALUE` texts; raises ExpertError for any other text."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ExpertError(
                f"{option} '{text}' does not say of which expert; write NAME=…, such as {example}"
            )
        if name in found:
            raise ExpertError(f"{option} names '{name}' twice; give every expert one")
        found[name] = value
    return found
