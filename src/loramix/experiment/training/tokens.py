"""Samples as token ids: encoded once for a run, kept as Arrow files, and read as needed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from loramix.config import PLACEHOLDER
from loramix.data.samples import Sample, hash_fraction
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded
from loramix.data.tokens.encoding import encode
from loramix.errors import DataError
from loramix.experiment.processes import processes
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.storage.files import atomic_folder
from loramix.storage.hub import first_line
from loramix.storage.locks import writing

_ENCODING = 2  # counts the ways in which `encode` made other ids of the same samples
_IDS = datasets.List(datasets.Value("int32"))
_COLUMNS = datasets.Features(
    {
        "prompt": _IDS,
        "target": _IDS,
        "task": datasets.Value("int32"),
        "length": datasets.Value("int32"),
    }
)


class Samples(torch.utils.data.Dataset[Encoded]):
    """Encoded samples of every task, task after task."""

    def __init__(self, parts: Sequence[datasets.Dataset]) -> None:
        self.sizes = [len(part) for part in parts]
        self._rows = datasets.concatenate_datasets(list(parts))
        self.lengths: list[int] = list(self._rows["length"])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Encoded:
        row = self._rows[index]
        return Encoded(row["prompt"], row["target"], row["task"])


def as_trained(task: Task, sample: Sample, *, bare: float) -> Task:
    """Return the task as a sample is asked in training: without its prompt for the share `bare`.

    The sample's hash decides, so that it is asked in the same way in every epoch and run.
    """
    if hash_fraction(sample, "bare") >= bare:
        return task
    return task.model_copy(update={"prompt": PLACEHOLDER})


def encode_samples(
    parts: Sequence[Sequence[Sample]],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    tasks: Sequence[Task],
    *,
    causal: bool,
    bare: float,
    cache: Path,
) -> Samples:
    """Return the samples of every task as token ids.

    bare: the share of the samples that has no prompt; always the same ones.
    cache: the folder of the Arrow files. Their names hold a digest of all that the ids depend on.
    """
    found = []
    for index, (task, samples) in enumerate(zip(tasks, parts, strict=True)):
        settings = [
            index,
            task.model_dump(mode="json", exclude={"expert"}),
            recipe.base.chat,
            causal,
            bare,
            tokenizer.chat_template,
            tokenizer.eos_token_id,
            _ENCODING,
        ]
        folder = cache / f"{task.name}-{_fingerprint(settings, tokenizer, samples)}"
        encoding = partial(_encode, samples, tokenizer, recipe, task, causal=causal, bare=bare)
        processes().once(partial(_keep, folder, encoding, index))
        try:
            found.append(datasets.load_from_disk(str(folder)))
        except Exception as error:  # Arrow's own are of many kinds
            raise DataError(
                f"the tokens in {folder} are damaged ({first_line(error)}); delete this folder, "
                "and they are made anew"
            ) from error
    return Samples(found)


def as_samples(parts: Sequence[Sequence[Encoded]]) -> Samples:
    """Return encoded samples of every task as a data set in memory."""
    return Samples([_table(rows, task) for task, rows in enumerate(parts)])


def _keep(folder: Path, encoding: Callable[[], list[Encoded]], index: int) -> None:
    """Write a task's samples as token ids, unless they are there."""
    with writing(folder, wait=True):  # steps side by side may ask for the same samples
        if not folder.exists():
            rows = encoding()
            with atomic_folder(folder) as temporary:
                _table(rows, index).save_to_disk(temporary)


def _encode(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    task: Task,
    *,
    causal: bool,
    bare: float,
) -> list[Encoded]:
    rows = []
    for sample in track(samples, f"{task.name} as tokens"):
        asked, chat = as_trained(task, sample, bare=bare), recipe.base.chat
        rows.append(encode(tokenizer, asked, sample.input, sample.target, causal=causal, chat=chat))
    return rows


def _table(rows: Sequence[Encoded], task: int) -> datasets.Dataset:
    columns = {
        "prompt": [row.prompt for row in rows],
        "target": [row.target for row in rows],
        "task": [task] * len(rows),
        "length": [len(row.prompt) + len(row.target) for row in rows],
    }
    return datasets.Dataset.from_dict(columns, features=_COLUMNS)


def _fingerprint(
    settings: Sequence[object], tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]
) -> str:
    """Return a digest of all that the ids depend on: the settings, the tokenizer, the texts."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for text in _texts(tokenizer, samples):
        digest.update(text.encode())
        digest.update(b"\0")  # keeps "ab", "c" apart from "a", "bc"
    return digest.hexdigest()[:16]


def _texts(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]) -> Iterator[str]:
    if tokenizer.is_fast:
        yield tokenizer.backend_tokenizer.to_str()
    else:
        yield json.dumps(tokenizer.get_vocab())
    for sample in samples:
        yield from (sample.input, sample.target)
