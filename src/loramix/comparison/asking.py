"""Ask one model the questions of one test set: its answers, its losses on the references, and its
routing weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from loramix.bases.loading import Base, encoder_path
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.comparison.testsets import QUESTIONS, Question, asked_task, read_questions
from loramix.data.leaks import RECORD, refuse_leaks
from loramix.data.tokens.answers import Answer
from loramix.data.tokens.batches import Encoded
from loramix.experiment.answers import (
    Loss,
    Model,
    encode_all,
    generate_answers,
    target_losses,
)
from loramix.experiment.recipe import Recipe, TestSet
from loramix.experiment.stages.gate import prompt_batches
from loramix.metrics.bertscore import bert_scorer
from loramix.metrics.measures import COMBINED, answer_scores
from loramix.metrics.words import TOKENIZER
from loramix.mixture.model import MixtureModel
from loramix.mixture.routing_measures import entropy
from loramix.storage.files import write_csv

ANSWERS, SCORES, ROUTING = "answers.csv", "scores.csv", "routing.csv"
ANSWER_COLUMNS = ("task", "id", "input", "generated", "finished", "reference")
ROUTING_COLUMNS = ("task", "layer", "expert", "weight", "entropy", "concentration")

Row = tuple[object, ...]
Scores = dict[str, object]  # of one question, by column


def ask(comparison: Comparison, compared: ComparedModel, test_set: TestSet) -> None:
    """Write answers.csv, scores.csv (one row per question) and, of gated mixtures, routing.csv.

    Raises LeakError if the model has learned from any of the samples.
    """
    recipe, folder = comparison.recipe, comparison.folder(compared, test_set)
    questions = _questions(comparison, compared, test_set)
    _guard(comparison, compared, questions)
    base = comparison.run.load_base()
    answer_rows: list[Row] = []
    score_rows: list[Scores] = []
    weight_rows: list[Row] = []
    with compared.load(base) as model:
        model.eval()
        for task, of_task in _by_task(questions).items():
            title = f"{compared.label} on {test_set} {task}"
            encoded = _encoded(model, base, recipe, of_task)
            answers = _answers(model, base, recipe, compared, of_task, encoded, title)
            losses: list[Loss] = []
            if of_task[0].reference:
                title = f"{title}, losses"
                size = recipe.generation.batch_size
                losses = target_losses(model, base.tokenizer, encoded, batch_size=size, label=title)
            answer_rows += _answer_rows(of_task, answers)
            score_rows += _scores(recipe, of_task, answers, losses)
            if isinstance(model, MixtureModel) and compared.gated:
                weight_rows += routing_rows(model, base, recipe, encoded, task)
    write_csv(folder / ANSWERS, ANSWER_COLUMNS, answer_rows)
    _write_scores(folder / SCORES, score_rows)
    if compared.gated:
        write_csv(folder / ROUTING, ROUTING_COLUMNS, weight_rows)


def combined(row: Mapping[str, object]) -> float:
    """Return the mean of the measures in 0 to 1 that a row of scores.csv has against its reference;
    an empty cell is none.
    """
    values = [float(str(row[name])) for name in COMBINED if row.get(name, "") != ""]
    return round(sum(values) / len(values), 6)


def routing_rows(
    mixture: MixtureModel, base: Base, recipe: Recipe, encoded: Sequence[Encoded], task: str
) -> list[Row]:
    """Return for every layer and expert the mean weight over the prompts, and the layer's mean
    entropy of the shares and mean Σw² of the weights themselves.
    """
    sums: dict[str, torch.Tensor] = {}
    size = recipe.generation.batch_size
    for batch in prompt_batches(mixture, base.tokenizer, encoded, size=size):
        for layer, weights_BE in mixture.mean_weights(**batch).items():
            square_B = weights_BE.square().sum(-1)
            measured = [weights_BE, entropy(weights_BE)[:, None], square_B[:, None]]
            sums[layer] = sums.get(layer, 0) + torch.cat(measured, 1).sum(0)
    rows: list[Row] = []
    for layer, total in sums.items():
        *weights, mean_entropy, mean_square = (total / len(encoded)).tolist()
        for expert, weight in zip(mixture.expert_names, weights, strict=True):
            numbers = (round(value, 6) for value in (weight, mean_entropy, mean_square))
            rows.append((task, layer, expert, *numbers))
    return rows


def _questions(
    comparison: Comparison, compared: ComparedModel, test_set: TestSet
) -> list[Question]:
    """Return the questions of a test set that a model is asked."""
    return [
        question
        for question in read_questions(comparison.root / QUESTIONS)
        if question.test_set == test_set
        and (compared.asks is None or question.task in compared.asks)
    ]


def _guard(comparison: Comparison, compared: ComparedModel, questions: Sequence[Question]) -> None:
    """Raise LeakError if a model has learned from the samples behind these questions."""
    ids = {question.id for question in questions}
    samples = [sample for sample in comparison.run.manifest if sample.id in ids]
    records = {f"{compared.label} ({folder.name})": folder / RECORD for folder in compared.learned}
    same = {task.name: task.cleaning.duplicates for task in comparison.recipe.tasks}
    refuse_leaks(samples, records, same=same)


def _by_task(questions: Sequence[Question]) -> dict[str, list[Question]]:
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    return by_task


def _encoded(
    model: Model, base: Base, recipe: Recipe, questions: Sequence[Question]
) -> list[Encoded]:
    """Return the questions of one task as token ids, with their references if they have any."""
    asked = [
        (asked_task(recipe, question), question.input, question.reference or None)
        for question in questions
    ]
    return encode_all(model, base.tokenizer, recipe, asked)


def _answers(
    model: Model,
    base: Base,
    recipe: Recipe,
    compared: ComparedModel,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    title: str,
) -> list[Answer]:
    """Return the answers to the questions of one task, or to the first ones only."""
    spec = recipe.comparison
    limits = [spec.answered_samples, None if compared.cached else spec.uncached_samples]
    limit = min((each for each in limits if each is not None), default=None)
    return generate_answers(
        model,
        base.tokenizer,
        recipe,
        asked_task(recipe, questions[0]),
        encoded[:limit],
        label=title,
        use_cache=compared.cached,
    )


def _answer_rows(questions: Sequence[Question], answers: Sequence[Answer]) -> list[Row]:
    rows: list[Row] = []
    for question, answer in zip(questions, answers, strict=False):  # there may be fewer answers
        ended = int(answer.finished)
        rows.append(
            (question.task, question.id, question.input, answer.text, ended, question.reference)
        )
    return rows


def _scores(
    recipe: Recipe, questions: Sequence[Question], answers: Sequence[Answer], losses: Sequence[Loss]
) -> list[Scores]:
    """Return one row of scores for every question, without columns that were not measured."""
    answered, task = questions[: len(answers)], asked_task(recipe, questions[0])
    scorer = None
    if "bertscore" in task.metrics and losses:
        scorer = bert_scorer(encoder_path(recipe.evaluation.encoder))
    columns = answer_scores(
        task,
        [question.input for question in answered],
        [answer.text for answer in answers],
        [question.reference for question in answered] if losses else None,
        bertscore=scorer,
        finished=[answer.finished for answer in answers],
    )
    rows: list[Scores] = []
    for each in questions:
        rows.append({"task": each.task, "id": each.id, "tokenizer": TOKENIZER})
    for row, loss in zip(rows, losses, strict=False):  # there may be none
        row |= {"tokens": loss.tokens, "loss": round(loss.mean, 6)}
        row["probability"] = round(float(torch.tensor(-loss.mean).exp()), 6)
    for index, row in enumerate(rows[: len(answers)]):
        row |= {name: round(values[index], 6) for name, values in columns.items()}
        if losses:
            row["combined"] = combined(row)
    return rows


def _write_scores(file: Path, rows: Sequence[Scores]) -> None:
    """Write rows that may lack columns of others."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    cells = [list(map(row.get, columns)) for row in rows]
    write_csv(file, list(columns), cells)
