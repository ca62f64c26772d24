"""Tasks that no expert is for: what the experts of other tasks are worth there.

Every task is asked of the mixture without its own expert, as `remove_expert` leaves it; beside it,
of all other experts at equal weights, and of the one that a sentence encoder finds nearest (the
retriever of comparisons). `many_experts.py` runs this.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from loramix import MixtureModel
from loramix.comparison.baselines import retriever
from loramix.comparison.testsets import asked_task, questions
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded
from loramix.experiment.answers import Loss, encode_all, mean_loss, target_losses
from loramix.experiment.run import Run

FORMS = ("named", "bare", "paraphrased")


class Unseen(NamedTuple):
    """What experts of other tasks gain over the base, as a share of what the task's own gains."""

    task: str
    prompts: str
    mixture: float
    uniform: float
    nearest: float


class Asker:
    """Asks a mixture the test questions of a run's tasks."""

    def __init__(
        self, run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase, samples: int
    ) -> None:
        self.run, self.mixture, self.tokenizer, self.samples = run, mixture, tokenizer, samples

    def rows(self, task: Task, form: str) -> list[Encoded]:
        """Return the questions of a task in one form of its prompts, as tokens."""
        few = {"test_sets": (form,), "test_samples": self.samples, "side_samples": self.samples}
        run = self.run.changed(comparison=self.run.recipe.comparison.model_copy(update=few))
        asked = [
            (asked_task(run.recipe, question), question.input, question.reference)
            for question in questions(run)
            if question.task == task.name
        ]
        return encode_all(self.mixture, self.tokenizer, run.recipe, asked)

    def losses(
        self, rows: Sequence[Encoded], weights: dict[str, float] | None = None
    ) -> list[Loss]:
        """Return the loss on every row's target; weights: instead of the gates' decisions."""
        with nullcontext() if weights is None else self.mixture.fixed(weights):
            return target_losses(self.mixture, self.tokenizer, rows, batch_size=8)


def unseen(run: Run, folder: Path, samples: int) -> Iterator[Unseen]:
    """Yield what the mixture in `folder` makes of every task of the run without its expert."""
    encoder = retriever.Encoder(run.recipe.evaluation.encoder)
    with TemporaryDirectory() as scratch:
        retriever.fit(run, Path(scratch))
        places_D = load_file(Path(scratch) / retriever.FILE)
    for task in run.recipe.routed:
        base, own = run.load_base(), run.recipe.own_experts[task.name]
        mixture = MixtureModel.from_pretrained(folder, base=base.model).eval()
        ask = Asker(run, mixture, base.tokenizer, samples)
        rows = {form: ask.rows(task, form) for form in FORMS}
        known = {
            form: (
                mean_loss(ask.losses(rows[form], {})),
                mean_loss(ask.losses(rows[form], {own: 1})),
            )
            for form in FORMS
        }
        mixture.remove_expert(own)
        others = mixture.expert_names
        for form in FORMS:
            near = []
            for row in rows[form]:
                text = base.tokenizer.decode(row.prompt, skip_special_tokens=True)
                (text_D,) = encoder.embed([text])
                nearest = max(others, key=lambda name: float(text_D @ places_D[name]))
                near += ask.losses([row], {nearest: 1.0})
            mixed = ask.losses(rows[form])
            uniform = ask.losses(rows[form], dict.fromkeys(others, 1 / len(others)))
            without, with_own = known[form]
            shares = [
                (without - mean_loss(losses)) / (without - with_own)
                for losses in (mixed, uniform, near)
            ]
            yield Unseen(task.name, form, *shares)
