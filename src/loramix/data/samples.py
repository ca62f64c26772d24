"""Samples: a task's rows cleaned, cut to size, split, and kept in one manifest.

A sample's content and a seed alone decide whether it is kept and which split it belongs to: not the
order of rows, the number of other samples, the machine or the time.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from loramix.data.sources import load_rows
from loramix.data.tasks import Cleaning, Task
from loramix.data.texts import normalise, refuse_other_forms, tidy
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
    """The samples of one task in an order that is random but fixed, and counts of its rows.

    `counts`: read = blank + out_of_range + duplicate + surplus + kept, and kept = train +
    validation + test.
    """

    samples: list[Sample]
    counts: dict[str, int]


def prepare(tasks: Sequence[Task], *, samples: int | None, seed: int) -> dict[str, Prepared]:
    """Return the cleaned, cut and split samples of every task: name -> samples.

    Each task is cut to its own `samples`, else to `samples`, else to the size of the smallest task
    without samples of its own. Raises DataError if a task has too few, an empty split, or
    the metric haiku and references of another form.
    """
    named = Counter(task.name for task in tasks)
    repeated = [name for name, times in named.items() if times > 1]
    if repeated:
        raise DataError(f"task names must differ, and these repeat: {', '.join(repeated)}")
    cleaned = {task.name: clean(task, load_rows(task)) for task in tasks}
    for task in tasks:
        refuse_other_forms(task, [target for _, target in cleaned[task.name][0]])
    sizes = [len(cleaned[task.name][0]) for task in tasks if task.samples is None]
    smallest = min(sizes, default=0)
    prepared: dict[str, Prepared] = {}
    for task in tasks:
        pairs, counts = cleaned[task.name]
        wanted = task.samples or samples or smallest
        selected = _select(task, pairs, counts, wanted=wanted, seed=seed)
        prepared[task.name] = _split(task, selected, counts, seed=seed)
    return prepared


def clean(task: Task, rows: Iterable[Pair]) -> tuple[list[Pair], dict[str, int]]:
    """Return the rows that the task's rules keep, and counts of the rows they drop.

    Rows are dropped as blank (no input or no target), then as out of range, then as duplicates;
    word limits and duplicates take any run of white space for one space, and no case.

    By default a repeated target makes a duplicate and a repeated input does not. In the haiku data
    23,707 different poems share 18,652 keywords: to drop repeated inputs would lose a fifth of the
    poems, while one poem under two keywords could be trained on and asked for again in the test.
    Samples with the same input always share a split (`split_of`).
    """
    kept: dict[object, Pair] = {}
    whitespace = task.cleaning.whitespace
    counts = dict.fromkeys(("read", "blank", "out_of_range", "duplicate"), 0)
    for row in rows:
        counts["read"] += 1
        pair = (tidy(row[0], whitespace), tidy(row[1], whitespace))
        if not all(map(normalise, pair)):
            counts["blank"] += 1
        elif not _in_range(task.cleaning, pair):
            counts["out_of_range"] += 1
        else:
            key = _duplicate_key(task.cleaning, pair)
            counts["duplicate"] += key in kept
            # The one with the smallest digest stays, so that the order of rows does not matter.
            kept[key] = min(kept.get(key, pair), pair, key=_sample_id)
    return list(kept.values()), counts


def split_of(text: str, *, seed: int) -> Split:
    """Return the split of all samples with this input: 70 % train, 15 % validation, 15 % test.

    Case and white space do not count, nor does the task: an input that two tasks share is never
    trained on for one and tested for the other.
    """
    fraction = _fraction("split", str(seed), normalise(text).casefold())  # [0, 1)
    return next(split for split, end in SPLIT_ENDS.items() if fraction < end)


def hash_fraction(sample: Sample, purpose: str) -> float:
    """Return a number in [0, 1), random but fixed for a sample and a purpose, to draw by.

    Unlike a generator's numbers, it does not depend on the other samples that are drawn.
    """
    return _fraction(purpose, sample.id)


def write_manifest(path: Path, prepared: Mapping[str, Prepared]) -> None:
    """Write the samples of all tasks to one parquet file, whole or not at all."""
    import pyarrow
    from pyarrow import parquet

    rows = [asdict(sample) for part in prepared.values() for sample in part.samples]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    with atomic_file(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)


def read_manifest(path: Path) -> list[Sample]:
    """Return the samples of a manifest in their order; DataError if it is missing or damaged."""
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = file.read(columns=list(COLUMNS)).to_pylist()
        return [Sample(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot read the manifest {path}: {error}; make it anew with the stage prepare"
        ) from error


def digest(*parts: str) -> str:
    """Return 16 hex digits that depend on all parts and on where one ends and the next begins."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")  # lone surrogates hash as well
    return hashlib.blake2b(joined, digest_size=8).hexdigest()


def _select(
    task: Task, pairs: list[Pair], counts: dict[str, int], *, wanted: int, seed: int
) -> list[Pair]:
    """Return the `wanted` pairs with the smallest seeded digests; fewer are always among more."""
    if len(pairs) < max(wanted, 1):
        raise DataError(
            f"task '{task.name}': {wanted or 'some'} samples are asked for, and cleaning leaves "
            f"{len(pairs)} ({_in_words(counts)}); lower samples, loosen cleaning or give a larger "
            "source"
        )
    return sorted(pairs, key=lambda pair: digest("select", str(seed), *pair))[:wanted]


def _split(task: Task, pairs: list[Pair], dropped: dict[str, int], *, seed: int) -> Prepared:
    samples: list[Sample] = []
    for pair in pairs:  # in the order of their digests, which is random but fixed
        split = split_of(pair[0], seed=seed)
        samples.append(Sample(task.name, _sample_id(pair), split, *pair))
    sizes = Counter(sample.split for sample in samples)
    left = dropped["read"] - dropped["blank"] - dropped["out_of_range"] - dropped["duplicate"]
    counts = dropped | {"surplus": left - len(pairs), "kept": len(pairs)}
    counts |= {split: sizes[split] for split in SPLIT_ENDS}
    if not all(sizes[split] for split in SPLIT_ENDS):
        raise DataError(
            f"task '{task.name}': a split is empty ({_in_words(counts)}); "
            "raise samples, loosen cleaning or give a larger source with more distinct inputs"
        )
    return Prepared(samples, counts)


def _in_range(cleaning: Cleaning, pair: Pair) -> bool:
    return _within(pair[0], cleaning.min_input_words, cleaning.max_input_words) and _within(
        pair[1], cleaning.min_target_words, cleaning.max_target_words
    )


def _within(text: str, low: int, high: int | None) -> bool:
    return low <= len(text.split()) <= (high or math.inf)


def _duplicate_key(cleaning: Cleaning, pair: Pair) -> object:
    source, target = (normalise(text).casefold() for text in pair)
    return target if cleaning.duplicates == "target" else (source, target)


def _sample_id(pair: Pair) -> str:
    return digest("id", *pair)


def _fraction(*parts: str) -> float:
    return int(digest(*parts), 16) / 2**64


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items())
