"""Whether trained gates are kept, and warnings about those that are behind.

On validation samples, they are compared with where they started, with every task's own expert, and
with uniform weights.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loramix.config import PLACEHOLDER
from loramix.data.samples import Sample
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded
from loramix.data.wordings import neutral
from loramix.experiment.answers import Loss, encode_all, mean_loss, target_losses
from loramix.experiment.paired import difference, gains, mean_of_means
from loramix.experiment.processes import processes
from loramix.experiment.progress import Bar
from loramix.experiment.run import GATE_CHECK, Run
from loramix.mixture.model import MixtureModel
from loramix.storage.files import write_csv

log = logging.getLogger("loramix")
COLUMNS = ("task", "prompts", "start", "trained", "own expert", "uniform", "kept")
AS_ASKED, OTHERWISE = "as the task asks", "otherwise"
FEWEST, TOGETHER = 8, 64  # samples of every task, and of all together, that are looked at
_BATCH = 8

Place = tuple[str, str]  # a task, and how it is asked
Losses = dict[Place, list[Loss]]


class GateCheck:
    """A look at gates before and after their training.

    It begins with the losses of the gates as they are: of validation samples as the tasks ask them,
    and with the input alone or in neutral wordings.
    """

    def __init__(self, run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._mixture, self._tokenizer = mixture, tokenizer
        self._own = run.recipe.own_experts
        self._rows = _validation(run, mixture, tokenizer)
        self._start = {key: value.clone() for key, value in mixture.gate_state().items()}
        self._before = self._losses(list(self._rows), "gates before training")

    def finish(self, folder: Path, *, trained: bool, keep_start: bool) -> None:
        """Write gates.csv; go back to the start unless training has helped, where that is wanted;
        and warn where the gates that are left are behind.
        """
        after = self._before
        if trained:
            after = self._losses(list(self._rows), "gates after training")
        kept = not (trained and keep_start) or gains(self._before.values(), after.values())
        if not kept:
            self._mixture.load_gate_state(self._start)
            log.info(
                "training has not helped the gates on validation samples (loss %.4f before, %.4f "
                "after): they stay where they started",
                *(mean_of_means(each.values()) for each in (self._before, after)),
            )
        left = after if kept else self._before
        own, uniform = self._own_experts(), self._uniform()
        rows = []
        for task, prompts in self._rows:
            each = [part.get((task, prompts)) for part in (self._before, after, own, uniform)]
            means = [None if part is None else round(mean_loss(part), 6) for part in each]
            rows.append((task, prompts, *means, int(kept)))
        if processes().first:
            write_csv(folder / GATE_CHECK, COLUMNS, rows)
        for name, other in (("its own expert", own), ("uniform weights", uniform)):
            for warning in behind(left, name, other):
                log.warning("%s", warning)
        if kept:
            for warning in behind(left, "where they started", self._before):
                log.warning("%s", warning)

    def _own_experts(self) -> Losses:
        asked = [place for place in self._rows if place[1] == AS_ASKED]
        return self._losses(asked, "own experts", lambda task: {self._own[task]: 1.0})

    def _uniform(self) -> Losses:
        asked = [place for place in self._rows if place[1] == AS_ASKED]
        names = self._mixture.expert_names
        even = dict.fromkeys(names, 1 / len(names))
        return self._losses(asked, "uniform weights", lambda task: even)

    def _losses(
        self,
        places: Sequence[Place],
        label: str,
        weights: Callable[[str], Mapping[str, float]] | None = None,
    ) -> Losses:
        """Return the losses of the gates, or at the weights of each task."""
        self._mixture.eval()
        found, bar = {}, Bar(label, len(places))
        for place in places:
            held = nullcontext() if weights is None else self._mixture.fixed(weights(place[0]))
            with held:
                rows = self._rows[place]
                found[place] = target_losses(
                    self._mixture, self._tokenizer, rows, batch_size=_BATCH
                )
            bar.step()
        bar.close()
        return found


def _validation(
    run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase
) -> dict[Place, list[Encoded]]:
    """Return the first validation samples of every task, asked in both ways."""
    recipe = run.recipe
    chosen = run.training_samples(recipe.gate, recipe.routed)["validation"]
    most = max(FEWEST, TOGETHER // len(chosen))
    rows = {}
    for task, samples in zip(recipe.routed, chosen, strict=True):
        few = samples[:most]
        asked: list[tuple[Task, str, str | None]] = [
            (task, sample.input, sample.target) for sample in few
        ]
        rows[task.name, AS_ASKED] = encode_all(mixture, tokenizer, recipe, asked)
        if not task.conversational and task.prompt != PLACEHOLDER:
            worded = _otherwise(task, few, longest=recipe.longest_prompt)
            rows[task.name, OTHERWISE] = encode_all(mixture, tokenizer, recipe, worded)
    return rows


def _otherwise(
    task: Task, samples: Sequence[Sample], *, longest: int
) -> list[tuple[Task, str, str | None]]:
    """Return samples in neutral wordings, of which the input alone is one."""
    plain = task.model_copy(update={"prompt": PLACEHOLDER, "max_input_tokens": longest})
    return [
        (plain, neutral(sample.input, place), sample.target) for place, sample in enumerate(samples)
    ]


def behind(left: Losses, name: str, other: Losses) -> Iterator[str]:
    """Yield in words where gates are behind others by more than noise."""
    for (task, prompts), losses in other.items():
        found = difference(left[task, prompts], losses)
        if found.positive:
            yield (
                f"on {task} ({prompts}) the gates are behind {name} by {found.mean:.4f} ± "
                f"{found.error:.4f} per token on validation samples"
            )
