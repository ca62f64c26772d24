"""Where the gates of a recipe start, before any training."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loramix.config import PLACEHOLDER
from loramix.data.samples import Sample
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded, generation_batch, length_order
from loramix.data.wordings import crossed, other_wordings
from loramix.experiment.answers import encode_all
from loramix.experiment.progress import Bar
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Run
from loramix.experiment.training.tokens import as_trained
from loramix.mixture.arrow import from_adapters
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import from_examples, start_steps

_BATCH = 8  # prompts that are read at once
PLAIN = 4.0  # sharpness of plain means, which training sharpens

Inputs = dict[str, Tensor]
Asked = tuple[Task, str, str | None]


def start_gates(run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the gates where the recipe lets them start."""
    init = run.recipe.gate.init
    if init in ("prototype", "mean"):
        examples = _examples(run, mixture, tokenizer, worded=init == "prototype")
        bar = Bar("the gates' start, from prompts", start_steps(mixture, examples))
        plain: dict[str, Any] = {"sharpness": PLAIN, "discount": False, "separated": False}
        how = plain if init == "mean" else {}
        from_examples(mixture, examples, each=bar.step, **how)
        bar.close()
    elif init == "arrow":
        from_adapters(mixture)


def _examples(
    run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase, *, worded: bool
) -> dict[str, list[Inputs]]:
    """Return what every expert's gates know, in batches: see `start_prompts`."""
    recipe = run.recipe
    chosen = run.training_samples(recipe.gate, recipe.routed)["train"]
    few = {}
    for task, samples in zip(recipe.routed, chosen, strict=True):
        few[task.name] = samples[: recipe.gate.examples]
    examples: dict[str, list[Inputs]] = {}
    for name, asked in start_prompts(recipe, few, worded=worded).items():
        encoded = encode_all(mixture, tokenizer, recipe, asked)
        batches = in_batches(mixture, tokenizer, encoded)
        examples.setdefault(recipe.own_experts[name], []).extend(batches)
    return examples


def start_prompts(
    recipe: Recipe, samples: Mapping[str, Sequence[Sample]], *, worded: bool
) -> dict[str, list[Asked]]:
    """Return the prompts of every task that gates start from, of these samples.

    worded: with the same in other wordings and about the inputs of others, instead of the inputs
        alone for the share `gate.bare`. Foreign inputs are whole only where gates attend to the
        request: in the mean over tokens, a few words of it about a long text differ little from the
        prompts of the text's own task, which would lose by it.
    """
    foreign = _crossed(recipe, samples) if worded else {}
    found = {}
    for task in recipe.routed:
        own = samples[task.name]
        if not worded:
            found[task.name] = _as_trained(task, own, recipe.gate.bare)
            continue
        plain = task.model_copy(update={"prompt": PLACEHOLDER})
        found[task.name] = _in_words(task, plain, own)
        if recipe.gate.pooling == "attention":
            plain = plain.model_copy(update={"max_input_tokens": recipe.longest_prompt})
        found[task.name] += [(plain, text, None) for text in foreign.get(task.name, ())]
    return found


def _crossed(recipe: Recipe, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[str]]:
    """Return every task's prompts about the inputs of tasks that have another expert."""
    single = [task for task in recipe.routed if not task.conversational]
    found: dict[str, list[str]] = {}
    for task in single:
        own = recipe.own_experts[task.name]
        others = [each for each in single if recipe.own_experts[each.name] != own]
        inputs = {each.name: [one.input for one in samples[each.name]] for each in [task, *others]}
        before, after = task.prompt.split(PLACEHOLDER)
        templates = {task.name: [(before, after)]} if before.strip() or after.strip() else {}
        found[task.name] = crossed(templates, inputs)[task.name]
    return found


def _in_words(task: Task, plain: Task, samples: Sequence[Sample]) -> list[Asked]:
    """Return prompts as they are, as inputs alone, and in neutral wordings.

    plain: the task without a prompt of its own.
    """
    asked: list[Asked] = [(task, sample.input, None) for sample in samples]
    if task.conversational:
        return asked
    inputs = [sample.input for sample in samples]
    known = None if task.prompt == PLACEHOLDER else inputs
    return asked + [(plain, text, None) for text in other_wordings(inputs, known)]


def _as_trained(task: Task, samples: Sequence[Sample], bare: float) -> list[Asked]:
    return [(as_trained(task, sample, bare=bare), sample.input, None) for sample in samples]


def in_batches(
    mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Encoded]
) -> list[Inputs]:
    """Return prompts as the model's inputs, in batches of similar length."""
    causal = not mixture.config.is_encoder_decoder
    order = length_order([len(each.prompt) for each in prompts])
    batches = []
    for first in range(0, len(prompts), _BATCH):
        part = [prompts[index] for index in order[first : first + _BATCH]]
        batch = generation_batch(tokenizer, part, causal)
        batches.append({key: value.to(mixture.device) for key, value in batch.items()})
    return batches
