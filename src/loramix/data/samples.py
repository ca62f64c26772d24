"""Data: clean a task's rows, cut tasks to size, split them, and keep the result as one manifest.

Which samples are kept and which split they belong to follows from their content and a seed alone:
not from the order of rows, the number of other samples, the machine or the time.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from loramix.data.sources import load_rows
from loramix.data.tasks import Cleaning, Task
from loramix.errors import DataError
from loramix.storage.files import atomic_file

Split = Literal["train", "validation", "test"]
Pair = tuple[str, str]  # input and target

SPLIT_ENDS: Mapping[Split, float] = {"train": 0.70, "validation": 0.85, "test": 1.0}
COLUMNS = ("task", "id", "split", "input", "target")


@dataclass(frozen=True)
class Sample:
    """One cleaned pair of input and target; `id` is a digest of both."""

    task: str
    id: str
    split: Split
    input: str
    target: str


@dataclass(frozen=True)
class Prepared:
    """The samples of one task in an order that is random but fixed, and how many rows took which
    way.

    `counts`: read = blank + out_of_range + duplicate + surplus + kept, and kept = train +
    validation + test.
    """

    samples: list[Sample]
    counts: dict[str, int]


def prepare(tasks: Sequence[Task], *, samples: int | None, seed: int) -> dict[str, Prepared]:
    """Return the cleaned, cut and split samples of every task, by name.

    Each task is cut to its own `samples`, else to `samples`, else to as many as the smallest of
    these tasks has. Raises DataError if a task has fewer than that, or if one of its splits would
    be empty.
    """
    repeated = [name for name, times in Counter(task.name for task in tasks).items() if times > 1]
    if repeated:
        raise DataError(f"task names must differ, and these repeat: {', '.join(repeated)}")
    cleaned = {task.name: clean(task, load_rows(task)) for task in tasks}
    smallest = min(
        (len(cleaned[task.name][0]) for task in tasks if task.samples is None), default=0
    )
    prepared = {}
    for task in tasks:
        pairs, counts = cleaned[task.name]
        wanted = task.samples or samples or smallest
        prepared[task.name] = _split(
            task, _select(task, pairs, counts, wanted=wanted, seed=seed), counts, seed=seed
        )
    return prepared


def clean(task: Task, rows: Iterable[Pair]) -> tuple[list[Pair], dict[str, int]]:
    """Return the rows that the task's rules keep, with white space normalised, and counts of those
    they drop.

    Rows are dropped as blank (no input or no target), then as out of range, then as duplicates. By
    default a repeated
    target is a duplicate, a repeated input is not: in the haiku data 23,707 different poems share
    18,652 keywords, and dropping these would lose a fifth of the poems, while one poem under two
    keywords could be trained on and asked for again in the test. Inputs that repeat always share a
    split (`split_of`). Of duplicates, the one with the smallest digest stays, so that the order of
    rows does not matter.
    """
    kept: dict[object, Pair] = {}
    counts = dict.fromkeys(("read", "blank", "out_of_range", "duplicate"), 0)
    for row in rows:
        counts["read"] += 1
        pair = (normalise(row[0]), normalise(row[1]))
        if not all(pair):
            counts["blank"] += 1
        elif not _in_range(task.cleaning, pair):
            counts["out_of_range"] += 1
        else:
            key = _duplicate_key(task.cleaning, pair)
            counts["duplicate"] += key in kept
            kept[key] = min(kept.get(key, pair), pair, key=_sample_id)
    return list(kept.values()), counts


def normalise(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), with every run of white space, line breaks
    too, as one space.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def split_of(text: str, *, seed: int) -> Split:
    """Return the split of every sample whose input is `text`, case aside: 70 % train, 15 %
    validation, 15 % test.

    The task plays no part, so that an input that two tasks share is never trained on for one and
    tested for the other.
    """
    position = _position("split", str(seed), text.casefold())
    return next(split for split, end in SPLIT_ENDS.items() if position < end)


def hash_fraction(sample: Sample, purpose: str) -> float:
    """Return a number in [0, 1) that is random but fixed for a sample and a purpose, to draw
    samples by.
    """
    return _position(purpose, sample.id)


def write_manifest(path: Path, prepared: Mapping[str, Prepared]) -> None:
    """Write the samples of all tasks to one parquet file, whole or not at all."""
    import pyarrow
    from pyarrow import parquet

    rows = [astuple(sample) for part in prepared.values() for sample in part.samples]
    columns = [[row[index] for row in rows] for index in range(len(COLUMNS))]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    with atomic_file(path) as temporary:
        parquet.write_table(pyarrow.table(columns, schema=schema), temporary)


def read_manifest(path: Path) -> list[Sample]:
    """Return the samples of a manifest in the order they were written; raises DataError if it is
    missing or damaged.
    """
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = file.read(columns=list(COLUMNS)).to_pylist()
        return [Sample(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot read the manifest {path}: {error}; make it anew with the stage prepare"
        ) from error


def _select(
    task: Task, pairs: list[Pair], counts: dict[str, int], *, wanted: int, seed: int
) -> list[Pair]:
    """Return the `wanted` pairs with the smallest seeded digests; fewer are always among more."""
    if len(pairs) < max(wanted, 1):
        raise DataError(
            f"task '{task.name}': {wanted or 'some'} samples are asked for, and cleaning leaves "
            f"{len(pairs)} "
            f"({_in_words(counts)}); lower samples, loosen cleaning or give a larger source"
        )
    return sorted(pairs, key=lambda pair: digest("select", str(seed), *pair))[:wanted]


def _split(task: Task, pairs: list[Pair], dropped: dict[str, int], *, seed: int) -> Prepared:
    samples = [
        Sample(
            task.name, _sample_id(pair), split_of(pair[0], seed=seed), input=pair[0], target=pair[1]
        )
        for pair in pairs
    ]
    sizes = Counter(sample.split for sample in samples)
    surplus = (
        dropped["read"]
        - sum(dropped[reason] for reason in ("blank", "out_of_range", "duplicate"))
        - len(pairs)
    )
    counts = (
        dropped
        | {"surplus": surplus, "kept": len(pairs)}
        | {split: sizes[split] for split in SPLIT_ENDS}
    )
    if not all(sizes[split] for split in SPLIT_ENDS):
        raise DataError(
            f"task '{task.name}': a split is empty ({_in_words(counts)}); "
            "raise samples, loosen cleaning or give a larger source with more different inputs"
        )
    return Prepared(samples, counts)


def _in_range(cleaning: Cleaning, pair: Pair) -> bool:
    input_words, target_words = (len(text.split()) for text in pair)
    return cleaning.min_input_words <= input_words <= (
        cleaning.max_input_words or input_words
    ) and cleaning.min_target_words <= target_words <= (cleaning.max_target_words or target_words)


def _duplicate_key(cleaning: Cleaning, pair: Pair) -> object:
    source, target = (text.casefold() for text in pair)
    return target if cleaning.duplicates == "target" else (source, target)


def _sample_id(pair: Pair) -> str:
    return digest("id", *pair)


def _position(*parts: str) -> float:
    return int(digest(*parts), 16) / 2**64


def digest(*parts: str) -> str:
    """Return 16 hex digits that depend on all parts and on where one ends and the next begins."""
    return hashlib.blake2b(
        "\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items())
