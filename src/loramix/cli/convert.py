"""`export` and `import`: a mixture as an ordinary adapter or model, and the reference's files as a
mixture.
"""

from collections.abc import Sequence
from pathlib import Path

from loramix.errors import MixtureError
from loramix.mixture.model import MixtureModel


def export_mixture(
    path: str,
    out: Path,
    *,
    weights: Sequence[str],
    prompt: str | None,
    task: str | None,
    merged: bool,
    dtype: str,
) -> None:
    """Write a mixture at fixed weights, or at those of a prompt, as a PEFT adapter or a merged
    model.
    """
    mixture = MixtureModel.from_pretrained(path, dtype=dtype)
    if bool(weights) == (prompt is not None):
        raise MixtureError(
            "export needs either --weight EXPERT=VALUE, once or more, or --prompt TEXT"
        )
    inputs = None if prompt is None else mixture.text_inputs(prompt, task=task)
    mixture.export(out, weights=pairs(weights) if weights else None, prompt=inputs, merged=merged)
    if merged:
        mixture.tokenizer.save_pretrained(out)


def pairs(texts: Sequence[str]) -> dict[str, float]:
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
                f"'{text}' is no weight; write EXPERT=VALUE, such as haiku=0.7"
            ) from error
    return found


def import_loralib(
    out: Path, *, base: str, experts: Sequence[str], gates: Path, alpha: float
) -> None:
    """Write a mixture from the reference's files."""
    from loramix.storage.loralib import import_mixture

    files = {}
    for text in experts:
        name, separator, file = text.partition("=")
        if not separator:
            raise MixtureError(f"'{text}' is no expert; write NAME=FILE, such as haiku=haiku.pt")
        files[name] = file
    import_mixture(base, files, gates, out, alpha=alpha)
