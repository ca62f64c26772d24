"""Samples as token ids: encoded once for a run, kept as Arrow files, and read from there as they
are needed.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from loramix.config import PLACEHOLDER
from loramix.data.batches import Encoded, encode
from loramix.data.samples import Sample, hash_fraction
from loramix.data.tasks import Task
from loramix.experiment.progress import track
from loramix.experiment.recipe import Recipe
from loramix.storage.files import atomic_folder

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
    """Return the task as a sample is asked in training: of the share `bare` of all samples, without
    a prompt.
    """
    return (
        task.model_copy(update={"prompt": PLACEHOLDER})
        if hash_fraction(sample, "bare") < bare
        else task
    )


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
    """Return the samples of every task as token ids; the share `bare` of them, always the same
    ones, has no prompt.

    cache: the folder of the Arrow files, which are named after all that the ids depend on.
    """
    found = []
    for place, (task, samples) in enumerate(zip(tasks, parts, strict=True)):
        folder = cache / _fingerprint(
            place, task, samples, tokenizer, recipe, causal=causal, bare=bare
        )
        if not folder.exists():
            rows = [
                encode(
                    tokenizer,
                    as_trained(task, sample, bare=bare),
                    sample.input,
                    sample.target,
                    causal=causal,
                    chat=recipe.base.chat,
                )
                for sample in track(samples, f"{task.name} as tokens")
            ]
            columns = {
                "prompt": [row.prompt for row in rows],
                "target": [row.target for row in rows],
                "task": [place] * len(rows),
                "length": [len(row.prompt) + len(row.target) for row in rows],
            }
            with atomic_folder(folder) as temporary:
                datasets.Dataset.from_dict(columns, features=_COLUMNS).save_to_disk(temporary)
        found.append(datasets.load_from_disk(str(folder)))
    return Samples(found)


def _fingerprint(
    place: int,
    task: Task,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    causal: bool,
    bare: float,
) -> str:
    settings = [
        place,
        task.model_dump(mode="json"),
        recipe.base.chat,
        causal,
        bare,
        tokenizer.chat_template,
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for text in _texts(tokenizer, samples):
        digest.update(text.encode())
        digest.update(b"\0")
    return f"{task.name}-{digest.hexdigest()[:16]}"


def _texts(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]) -> Iterator[str]:
    yield (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else json.dumps(tokenizer.get_vocab())
    )
    for sample in samples:
        yield from (sample.input, sample.target)
