"""Fitting: gates that learn from a few examples which expert a prompt belongs to.

Three depths, by what is given: nothing (rules from the adapters alone), prompts (prototypes, in
seconds and without a gradient), prompts and answers (prototypes too, which training may refine and
never make worse; few examples rarely make it worth the minutes, see docs/results.md).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import Tensor

from loramix.assembly.examples import Examples, Given, read_examples
from loramix.assembly.refinement import Refinement, refine
from loramix.assembly.verdict import encoded_examples
from loramix.config import PLACEHOLDER
from loramix.data.wordings import crossed, other_wordings, template_of, without_template
from loramix.errors import DataError, did_you_mean
from loramix.experiment.progress import Bar
from loramix.experiment.training.gate_start import in_batches
from loramix.mixture import consensus
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import from_examples, start_steps

log = logging.getLogger("loramix")
Depth = Literal["nothing", "prompts", "answers"]
PROMPTS = 16  # of one expert, from which prototypes are made
TRAINED = 24  # of these that training sees, and
CHECKED = 8  # of the held-out ones by which it is judged: more cost minutes and change little
HELD_OUT = 0.25  # of the examples


@dataclass(frozen=True)
class Fit:
    """How the gates of a mixture were fitted.

    held_out: the examples of every expert from which nothing was learned.
    refinement: what training did; None where there was none.
    """

    depth: Depth
    held_out: Mapping[str, Examples]
    refinement: Refinement | None


def fit(
    mixture: MixtureModel,
    examples: Mapping[str, Given | Examples],
    *,
    training: bool = False,
    held_out: float = HELD_OUT,
    seed: int = 0,
    folder: Path | None = None,
) -> Fit:
    """Fit the gates of a mixture to examples of its experts, in place.

    examples: for every expert a source as tasks read them, a task, or the examples themselves, see
        `loramix.assembly.examples.read_examples`; empty: from the adapters alone.
    training: whether to refine the gates on the answers, and keep that where it helps.
    held_out: the share of the examples from which nothing is learned, for `loramix.assembly.judge`
        and to see whether training helps; without any, there is none.
    folder: of the training's checkpoints, from which it goes on if it was killed.

    Raises DataError if some experts have examples and others not, or fewer than two.
    """
    found = read_all(mixture.expert_names, examples)
    if not found:
        _from_adapters(mixture)
        return Fit("nothing", {}, None)
    _check_answers(found, training, held_out)
    parts = {name: each.divided(held_out) for name, each in found.items()}
    learned = {name: part for name, (part, _) in parts.items()}
    withheld = {name: part for name, (_, part) in parts.items()}
    _check_chat(mixture, learned)
    mixture.widen(len(mixture.experts))
    rows = {name: encoded_examples(mixture, each) for name, each in learned.items()}
    prompts = all_prompts(mixture, learned)
    bar = Bar("prototypes", start_steps(mixture, prompts))
    from_examples(mixture, prompts, each=bar.step)
    bar.close()
    if not training:
        return Fit("prompts", withheld, None)
    asked = {name: encoded_examples(mixture, each)[:CHECKED] for name, each in withheld.items()}
    rows = {name: part[:TRAINED] for name, part in rows.items()}
    with TemporaryDirectory() as temporary:
        refinement = refine(mixture, rows, asked, folder=folder or Path(temporary), seed=seed)
    return Fit("answers", withheld, refinement)


def read_all(experts: list[str], examples: Mapping[str, Given | Examples]) -> dict[str, Examples]:
    """Return the examples of every expert, in their order; none at all if none are given."""
    check_names(experts, examples)
    missing = [name for name in experts if name not in examples]
    if examples and missing:
        raise DataError(
            f"there are examples for some experts and none for {', '.join(missing)}; every expert "
            "needs some, to be told from the others, or give none at all"
        )
    return {
        name: each if isinstance(each := examples[name], Examples) else read_examples(name, each)
        for name in experts
        if name in examples
    }


def check_names(experts: Sequence[str], named: Iterable[str]) -> None:
    """Raise DataError if a name is not that of an expert."""
    for name in named:
        if name not in experts:
            raise DataError(
                f"examples: there is no expert '{name}'{did_you_mean(name, experts)}; there are "
                f"{', '.join(experts)}"
            )


def all_prompts(
    mixture: MixtureModel, examples: Mapping[str, Examples]
) -> dict[str, list[dict[str, Tensor]]]:
    """Return the prompts of all experts as the model's inputs: their own, the same in other
    wordings, and theirs about the inputs of the others.
    """
    prompts = {name: prompts_of(mixture, each) for name, each in examples.items()}
    single = {name: _few(each) for name, each in examples.items() if not each.task.conversational}
    templates, inputs = {}, {}
    for name, few in single.items():
        texts = [text for text, _ in few.pairs]
        if few.task.prompt != PLACEHOLDER:
            before, after = few.task.prompt.split(PLACEHOLDER)
            templates[name], inputs[name] = [(before, after)], texts
        elif found := template_of(texts):
            templates[name], inputs[name] = [found], without_template(texts)
        else:
            inputs[name] = texts
    for name, texts in crossed(templates, inputs).items():
        rows = encoded_examples(mixture, _as_they_are(single[name], texts))
        prompts[name] += in_batches(mixture, mixture.tokenizer, rows)
    return prompts


def prompts_of(mixture: MixtureModel, examples: Examples) -> list[dict[str, Tensor]]:
    """Return an expert's prompts as the model's inputs, as many as prototypes need, and the same in
    other wordings.
    """
    few = _few(examples)
    rows = encoded_examples(mixture, few)
    if not few.task.conversational:
        inputs = [text for text, _ in few.pairs]
        known = None if few.task.prompt == PLACEHOLDER else inputs
        others = other_wordings([few.task.render(text) for text in inputs], known)
        rows += encoded_examples(mixture, _as_they_are(few, others))
    return in_batches(mixture, mixture.tokenizer, rows)


def _few(examples: Examples) -> Examples:
    return replace(examples, pairs=examples.pairs[:PROMPTS])


def _as_they_are(examples: Examples, texts: Sequence[str]) -> Examples:
    """Return texts as the prompts of an expert, without its template around them."""
    task = examples.task.model_copy(update={"prompt": PLACEHOLDER})
    return replace(examples, task=task, pairs=tuple((text, None) for text in texts))


def _from_adapters(mixture: MixtureModel) -> None:
    mixture.widen(len(mixture.experts))
    bar = Bar("what the adapters say of neutral texts", consensus.batches())
    consensus.from_adapters(mixture, each=bar.step)
    bar.close()


def _check_chat(mixture: MixtureModel, examples: Mapping[str, Examples]) -> None:
    """Let prompts go through the chat template where examples are conversations."""
    if any(each.task.conversational for each in examples.values()):
        mixture.prompting = mixture.prompting.model_copy(update={"chat": True})


def _check_answers(examples: Mapping[str, Examples], training: bool, held_out: float) -> None:
    """Raise DataError if training lacks answers, or examples by which it could be judged."""
    without = [name for name, each in examples.items() if not each.answered]
    if training and without:
        raise DataError(
            f"training needs answers, and the examples of {', '.join(without)} have none"
        )
    if training and not held_out:
        raise DataError("training needs held-out examples, to be undone where it does not help")
