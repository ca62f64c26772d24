"""Samples: a task's rows cleaned, cut to size, split, and kept in one manifest.

A sample's content and a seed alone decide whether it is kept and which split it belongs to: not the
order of rows, the number of other samples, the machine or the time.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loramix.data.cleaning import (
    CHANGED,
    DROPPED,
    OVERLAP,
    Cleaned,
    clean,
    pair_id,
    split_key,
    without_overlaps,
)
from loramix.data.sources import own_splits, read_split, resolved
from loramix.data.tasks import Pair, Split, Task
from loramix.data.texts import digest, normalise, refuse_other_forms
from loramix.errors import DataError
from loramix.storage.files import atomic_file

Placed = list[tuple[Split, Pair]]  # pairs with their splits
SPLIT_ENDS: Mapping[Split, float] = {"train": 0.70, "validation": 0.85, "test": 1.0}
HELD_OUT = 0.15  # the usual share of validation, and of test
# What becomes of rows, in the order in which they are counted.
REASONS = ("read", *DROPPED, OVERLAP, "surplus", "kept", *SPLIT_ENDS, *CHANGED)
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

    counts: read = blank + out_of_range + duplicate + overlap + surplus + kept, and kept = train +
        validation + test; where sources have splits of their own, overlap counts what one of them
        holds of another, or of the test of another task. What cleaning has changed comes last, see
        `loramix.data.cleaning`.
    examples: the first pair of every reason, as the source has it.
    """

    samples: list[Sample]
    counts: dict[str, int]
    examples: dict[str, Pair] = field(default_factory=dict, compare=False)


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
    tasks = [resolved(task) for task in tasks]
    parts = {task.name: _cleaned_parts(task) for task in tasks}
    cleaned = {task.name: without_overlaps(task, parts[task.name]) for task in tasks}
    placed = {task.name: _placed(task, parts[task.name], seed) for task in tasks}
    if any(own_splits(task) for task in tasks):
        _withhold_everywhere(tasks, placed, cleaned)
    for task in tasks:
        refuse_other_forms(task, [target for _, target in cleaned[task.name].pairs])
    sizes = [len(cleaned[task.name].pairs) for task in tasks if task.samples is None]
    smallest = min(sizes, default=0)
    prepared: dict[str, Prepared] = {}
    for task in tasks:
        whole = cleaned[task.name]
        wanted = task.samples or samples or smallest
        if len(whole.pairs) < max(wanted, 1):
            raise _too_few(task, whole, wanted)
        all_samples = [
            Sample(task.name, pair_id(pair), split, *pair) for split, pair in placed[task.name]
        ]
        selected = _select(all_samples, wanted, seed, keep_shares=len(parts[task.name]) > 1)
        prepared[task.name] = _prepared(task, selected, whole)
    return prepared


def split_of(
    text: str, *, seed: int, splits: Sequence[Split] = ("train", "validation", "test")
) -> Split:
    """Return the split of all samples with this input: 70 % train, 15 % validation, 15 % test.

    splits: those to choose from; train also has the shares of the others.
    Case and white space do not count, nor does the task: an input that two tasks share is never
    trained on for one and tested for the other.
    """
    fraction = _fraction("split", str(seed), normalise(text).casefold())  # [0, 1)
    found = next(split for split, end in SPLIT_ENDS.items() if fraction < end)
    return found if found in splits else "train"


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


def _cleaned_parts(task: Task) -> dict[Split, Cleaned]:
    """Return the cleaned pairs of every split of the source's own, the most withheld first."""
    named = own_splits(task)
    splits: tuple[Split, ...] = ("test", "validation")
    parts = {
        split: clean(task, read_split(task, named[split])) for split in splits if split in named
    }
    return {**parts, "train": clean(task, read_split(task, task.split))}


def _placed(task: Task, parts: Mapping[Split, Cleaned], seed: int) -> Placed:
    """Return pairs with their splits: a source's own one, of which `train` is divided into those
    that the source has not.
    """
    missing = [split for split in SPLIT_ENDS if split == "train" or split not in parts]
    return [
        (
            own if own != "train" else split_of(split_key(task, pair), seed=seed, splits=missing),
            pair,
        )
        for own, part in parts.items()
        for pair in part.pairs
    ]


def _withhold_everywhere(
    tasks: Sequence[Task], placed: Mapping[str, Placed], cleaned: Mapping[str, Cleaned]
) -> None:
    """Leave out of training and validation what another task's test holds: a source's own splits
    do not follow from the inputs, as ours do.
    """

    def key(task: Task, pair: Pair) -> str:
        return normalise(split_key(task, pair)).casefold()

    tested: dict[str, set[str]] = defaultdict(set)  # input -> names of tasks
    for task in tasks:
        for split, pair in placed[task.name]:
            if split == "test":
                tested[key(task, pair)].add(task.name)
    for task in tasks:
        held, kept = cleaned[task.name], Placed()
        for split, pair in placed[task.name]:
            if split != "test" and tested.get(key(task, pair), set()) - {task.name}:
                held.note(OVERLAP, pair)
            else:
                kept.append((split, pair))
        placed[task.name][:] = kept
        held.pairs = [pair for _, pair in kept]


def _select(samples: list[Sample], wanted: int, seed: int, *, keep_shares: bool) -> list[Sample]:
    """Return the `wanted` samples with the smallest seeded digests; fewer are always among more.

    keep_shares: validation and test get no more than their usual shares while others suffice, as
        splits of a source's own may be of any size.
    """
    ordered = sorted(
        samples, key=lambda sample: digest("select", str(seed), sample.input, sample.target)
    )
    if not keep_shares or len(ordered) == wanted:
        return ordered[:wanted]
    places: Counter[Split] = Counter()
    within, beyond = list[Sample](), list[Sample]()
    for sample in ordered:
        places[sample.split] += 1
        usual = sample.split == "train" or places[sample.split] <= max(1, wanted * HELD_OUT)
        (within if usual else beyond).append(sample)
    room = wanted - sum(sample.split != "train" for sample in within)
    train = [sample for sample in within if sample.split == "train"][: max(room, 0)]
    chosen = {id(sample) for sample in within if sample.split != "train"} | set(map(id, train))
    chosen |= {id(sample) for sample in beyond[: wanted - len(chosen)]}
    return [sample for sample in ordered if id(sample) in chosen]


def _prepared(task: Task, samples: list[Sample], cleaned: Cleaned) -> Prepared:
    sizes = Counter(sample.split for sample in samples)
    found: dict[str, int] = cleaned.counts | {split: sizes[split] for split in SPLIT_ENDS}
    found |= {"surplus": len(cleaned.pairs) - len(samples), "kept": len(samples)}
    counts = {reason: found[reason] for reason in REASONS if reason in found}
    if not all(sizes[split] for split in SPLIT_ENDS):
        raise DataError(
            f"task '{task.name}': a split is empty ({_in_words(counts)}); "
            "raise samples, loosen cleaning or give a larger source with more distinct inputs"
        )
    return Prepared(samples, counts, cleaned.examples)


def _too_few(task: Task, cleaned: Cleaned, wanted: int) -> DataError:
    return DataError(
        f"task '{task.name}': {wanted or 'some'} samples are asked for, and cleaning leaves "
        f"{len(cleaned.pairs)} ({_in_words(cleaned.counts)}); lower samples, loosen cleaning or "
        "give a larger source"
    )


def _fraction(*parts: str) -> float:
    return int(digest(*parts), 16) / 2**64


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in counts.items())
