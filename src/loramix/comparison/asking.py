"""Ask one model the questions of one test set: its answers, its losses on the references, and how
it routes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from loramix.bases.loading import Base, encoder_path
from loramix.comparison.contenders import Contender
from loramix.comparison.testsets import Question, asked_task, read_questions
from loramix.data.batches import Encoded, generation_batch
from loramix.data.leaks import RECORD, refuse_leaks
from loramix.data.samples import read_manifest
from loramix.data.tasks import Task
from loramix.experiment.answers import Answer, Loss, Model, answer, encode_all, target_losses
from loramix.experiment.recipe import Recipe
from loramix.experiment.run import Layout
from loramix.experiment.training.trainer import recipe_base
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.measures import answer_scores
from loramix.mixture.model import MixtureModel
from loramix.mixture.routing_measures import entropy
from loramix.storage.files import write_csv

ANSWERS, SCORES, ROUTING = "answers.csv", "scores.csv", "routing.csv"
COMBINED = ("rougeL", "bertscore", "exact_match", "bleu", "probability")
ANSWER_COLUMNS = ("task", "id", "input", "generated", "finished", "reference")
ROUTING_COLUMNS = ("task", "layer", "expert", "weight", "entropy", "concentration")


def ask(
    recipe: Recipe, layout: Layout, contender: Contender, asked: Path, test_set: str, folder: Path
) -> None:
    """Write answers.csv, scores.csv (one row per question) and, of gated mixtures, routing.csv to
    `folder`.

    Raises LeakError if the model has learned from any of the samples.
    """
    everything = [each for each in read_questions(asked) if each.test_set == test_set]
    questions = [
        each for each in everything if contender.asks is None or each.task in contender.asks
    ]
    _guard(recipe, layout, contender, questions)
    base = recipe_base(recipe)
    tasks = list(dict.fromkeys(each.task for each in questions))
    answered: list[list[object]] = []
    scores: list[dict[str, object]] = []
    routing: list[tuple[object, ...]] = []
    with contender.load(base) as model:
        model.eval()
        for name in tasks:
            of_task = [each for each in questions if each.task == name]
            label = f"{contender.label} on {test_set} {name}"
            answers, losses, encoded = _asked(model, base, recipe, of_task, contender, label)
            answered += [
                [name, each.id, each.input, reply.text, int(reply.finished), each.reference]
                for each, reply in zip(of_task, answers, strict=False)
            ]
            scores += _scores(recipe, of_task, answers, losses)
            if isinstance(model, MixtureModel) and contender.gated:
                routing += _routing(model, base, recipe, encoded, name)
    write_csv(folder / ANSWERS, ANSWER_COLUMNS, answered)
    columns = list(dict.fromkeys(key for row in scores for key in row))
    write_csv(folder / SCORES, columns, [[row.get(column) for column in columns] for row in scores])
    if contender.gated:
        write_csv(folder / ROUTING, ROUTING_COLUMNS, routing)


def _guard(
    recipe: Recipe, layout: Layout, contender: Contender, questions: Sequence[Question]
) -> None:
    asked = {question.id for question in questions}
    samples = [sample for sample in read_manifest(layout.manifest) if sample.id in asked]
    records = {
        f"{contender.label} ({folder.name})": folder / RECORD for folder in contender.learned
    }
    refuse_leaks(
        samples, records, same={task.name: task.cleaning.duplicates for task in recipe.tasks}
    )


def _asked(
    model: Model,
    base: Base,
    recipe: Recipe,
    questions: Sequence[Question],
    contender: Contender,
    label: str,
) -> tuple[list[Answer], list[Loss], list[Encoded]]:
    """Return the answers (the first ones only, of a model without a cache), the losses if there are
    references.
    """
    task = asked_task(recipe, questions[0])
    has_reference = bool(questions[0].reference)
    encoded = encode_all(
        model,
        base.tokenizer,
        recipe,
        [
            (asked_task(recipe, each), each.input, each.reference if has_reference else None)
            for each in questions
        ],
    )
    first = encoded if contender.cached else encoded[: recipe.comparison.uncached_samples]
    answers = answer(
        model,
        base.tokenizer,
        recipe,
        first,
        task.max_new_tokens,
        label=label,
        use_cache=contender.cached,
    )
    losses = (
        target_losses(model, base.tokenizer, recipe, encoded, label=f"{label}, losses")
        if has_reference
        else []
    )
    return answers, losses, encoded


def _scores(
    recipe: Recipe, questions: Sequence[Question], answers: Sequence[Answer], losses: Sequence[Loss]
) -> list[dict[str, object]]:
    """Return one row of scores for every question; what was not measured is missing."""
    answered = questions[: len(answers)]
    task = asked_task(recipe, questions[0])
    scorer = (
        BertScorer(encoder_path(recipe.evaluation.encoder))
        if _wants_bertscore(task) and losses
        else None
    )
    columns = answer_scores(
        task,
        [each.input for each in answered],
        [each.text for each in answers],
        [each.reference for each in answered] if losses else None,
        bertscore=scorer,
        finished=[each.finished for each in answers],
    )
    rows: list[dict[str, object]] = [{"task": each.task, "id": each.id} for each in questions]
    for row, loss in zip(rows, losses, strict=False):
        row |= {"tokens": loss.tokens, "loss": round(loss.mean, 6)}
        row["probability"] = round(float(torch.tensor(-loss.mean).exp()), 6)
    for index, row in enumerate(rows[: len(answers)]):
        row |= {name: round(values[index], 6) for name, values in columns.items()}
        if losses:
            row["combined"] = _combined(row)
    return rows


def _combined(row: Mapping[str, object]) -> float:
    """Return the mean of the scores against the reference that this task has, all of them in 0 to
    1.
    """
    values = [float(str(row[name])) for name in COMBINED if name in row]
    return round(sum(values) / len(values), 6)


def _wants_bertscore(task: Task) -> bool:
    return "bertscore" in task.metrics


def _routing(
    mixture: MixtureModel, base: Base, recipe: Recipe, encoded: Sequence[Encoded], task: str
) -> list[tuple[object, ...]]:
    """Return for every layer and expert the mean weight over the prompts, and the layer's mean
    entropy and Σw².
    """
    sums: dict[str, torch.Tensor] = {}
    size, causal = recipe.generation.batch_size, not mixture.config.is_encoder_decoder
    for first in range(0, len(encoded), size):
        batch = generation_batch(base.tokenizer, encoded[first : first + size], causal)
        given = {key: value.to(mixture.device) for key, value in batch.items()}
        for layer, weights_BE in mixture.mean_weights(**given).items():
            square_B = weights_BE.square().sum(-1)
            measured = [weights_BE, entropy(weights_BE)[:, None], square_B[:, None]]
            found = torch.cat(measured, 1).sum(0)
            sums[layer] = sums.get(layer, 0) + found
    names = mixture.expert_names
    return [
        (
            task,
            layer,
            expert,
            *(round(float(value), 6) for value in (total[index], total[-2], total[-1])),
        )
        for layer, total in ((layer, total / len(encoded)) for layer, total in sums.items())
        for index, expert in enumerate(names)
    ]
