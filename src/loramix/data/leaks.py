"""The leak guard: a record of what each model has learned from, and the refusal to test on it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from loramix.data.samples import Sample
from loramix.data.texts import digest, normalise
from loramix.errors import LeakError
from loramix.storage.files import read_csv, write_csv

RECORD = "learned_from.csv"  # beside the losses of every trained model
Match = Literal["target", "pair"]


def record(path: Path, samples: Iterable[Sample]) -> None:
    """Write the digests of the samples that a model was trained or chosen on."""
    # Sorted and without repeats, so that the file does not depend on the order of training.
    rows = sorted({(sample.task, sample.split, *_digests(sample).values()) for sample in samples})
    write_csv(path, ("task", "split", "input", "target", "pair"), rows)


def refuse_leaks(
    samples: Sequence[Sample], records: Mapping[str, Path], *, same: Mapping[str, Match]
) -> None:
    """Raise LeakError if a model has seen any of `samples`.

    records: model -> the path of its record. same: task -> whether samples of the same target, or
        only those of the same pair, count as one.
    A sample was seen if its input or its target was. Of a task that asks for "pair", whose answers
    come from a small set, only the pair of both counts.
    """
    for model, path in records.items():
        seen = _read(model, path)
        leaked = [
            sample for sample in samples if _was_seen(sample, seen, same.get(sample.task, "target"))
        ]
        if leaked:
            first = leaked[0]
            raise LeakError(
                f"'{model}' has learned from {len(leaked)} of the {len(samples)} test samples, so "
                "its scores on them would mean nothing; the first is sample "
                f"{first.id} of {first.task}, {first.input[:60]!r}. {path} lists what it learned "
                f"from; delete {path.parent} and run again to train it without them"
            )


def _was_seen(sample: Sample, seen: Mapping[str, set[str]], same: Match) -> bool:
    digests = _digests(sample)
    parts = ("input", "target") if same == "target" else ("pair",)
    return any(digests[part] in seen[part] for part in parts)


def _digests(sample: Sample) -> dict[str, str]:
    source, target = (normalise(text).casefold() for text in (sample.input, sample.target))
    return {
        "input": digest("input", source),
        "target": digest("target", target),
        "pair": digest("pair", source, target),
    }


def _read(model: str, path: Path) -> dict[str, set[str]]:
    if not path.is_file():
        raise LeakError(
            f"'{model}' left no record of what it learned from, so the test samples may not be "
            f"new to it: {path} is missing; delete {path.parent} and run again"
        )
    seen: dict[str, set[str]] = {"input": set(), "target": set(), "pair": set()}
    for row in read_csv(path):
        for part, digests in seen.items():
            digests.add(row[part])
    return seen
