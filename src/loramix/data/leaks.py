"""The leak guard: what every model learned from, by hash, and the refusal to test on it."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from loramix.data.samples import Sample, digest
from loramix.errors import LeakError
from loramix.storage.files import atomic_file

RECORD = "learned_from.csv"  # beside the losses of every trained model
Match = Literal["target", "pair"]


def record(path: Path, samples: Iterable[Sample]) -> None:
    """Write the digests of the samples that a model was trained or chosen on: each input's,
    target's and pair's.
    """
    rows = sorted({(sample.task, sample.split, *_digests(sample).values()) for sample in samples})
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "split", "input", "target", "pair"))
        writer.writerows(rows)


def refuse_leaks(
    samples: Sequence[Sample], records: Mapping[str, Path], *, same: Mapping[str, Match]
) -> None:
    """Raise LeakError if any of `samples` was seen by a model, whose record is the path under its
    name.

    A sample was seen if its input was, or its target; of tasks whose `same` is "pair", whose few
    answers repeat rightfully, a target that was seen with another input is none.
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
                "its scores on them "
                f"would mean nothing; the first is sample {first.id} of {first.task}, "
                f"{first.input[:60]!r}. "
                f"{path} lists what it learned from; delete {path.parent} and run again to train "
                "it without them"
            )


def _was_seen(sample: Sample, seen: Mapping[str, set[str]], same: Match) -> bool:
    own = _digests(sample)
    return any(
        own[part] in seen[part] for part in (("input", "target") if same == "target" else ("pair",))
    )


def _digests(sample: Sample) -> dict[str, str]:
    return {
        "input": digest("input", sample.input.casefold()),
        "target": digest("target", sample.target.casefold()),
        "pair": digest("pair", sample.input.casefold(), sample.target.casefold()),
    }


def _read(model: str, path: Path) -> dict[str, set[str]]:
    if not path.is_file():
        raise LeakError(
            f"'{model}' left no record of what it learned from, so nobody knows whether the test "
            "samples are new to "
            f"it: {path} is missing; delete {path.parent} and run again"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {part: {row[part] for row in rows} for part in ("input", "target", "pair")}
