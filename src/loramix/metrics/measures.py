"""What is measured of a model's answers, and which way is better."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loramix.data.tasks import Task
from loramix.errors import DataError
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.diversity import repetition, words
from loramix.metrics.haiku import FORM, haiku_form
from loramix.metrics.matching import bleu, exact_match, keyword_use
from loramix.metrics.rouge import rouge

BLANK = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # Unicode categories of what leaves no mark on paper

Scores = dict[str, list[float]]  # by name of the measure, one score per sample


@dataclass(frozen=True)
class Measure:
    """One thing that is measured; `name` is the key in tables, `label` what a reader sees."""

    name: str
    label: str
    better: Literal["higher", "lower", "neither"]
    needs_reference: bool


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (  # in the order in which they are shown
            Measure("rouge1", "ROUGE-1", "higher", needs_reference=True),
            Measure("rouge2", "ROUGE-2", "higher", needs_reference=True),
            Measure("rougeL", "ROUGE-L", "higher", needs_reference=True),
            Measure("bertscore", "BERTScore", "higher", needs_reference=True),
            Measure("loss", "loss per target token", "lower", needs_reference=True),
            Measure("perplexity", "perplexity", "lower", needs_reference=True),
            Measure(
                "probability",
                "mean probability of the reference's tokens, exp(-loss) of each sample",
                "higher",
                needs_reference=True,
            ),
            Measure(
                "combined",
                "mean of ROUGE-L, BERTScore and probability",
                "higher",
                needs_reference=True,
            ),
            Measure("exact_match", "exact match", "higher", needs_reference=True),
            Measure("bleu", "BLEU", "higher", needs_reference=True),
            Measure(
                "poem_575", "three lines of 5, 7 and 5 syllables", "higher", needs_reference=False
            ),
            Measure("three_lines", "three lines", "higher", needs_reference=False),
            Measure(
                "lines_right",
                "share of the three lines with the right syllables",
                "higher",
                needs_reference=False,
            ),
            Measure(
                "keyword_use", "share of the input's keywords used", "higher", needs_reference=False
            ),
            Measure("words", "number of words", "neither", needs_reference=False),
            Measure(
                "repetition", "share of word pairs that repeat", "lower", needs_reference=False
            ),
            Measure("empty", "empty", "lower", needs_reference=False),
            Measure("cut", "ended by the length limit", "lower", needs_reference=False),
            Measure(
                "malformed",
                "empty, cut or, for haikus, not three lines",
                "lower",
                needs_reference=False,
            ),
            Measure(
                "distinct1",
                "share of distinct words, all answers together",
                "higher",
                needs_reference=False,
            ),
            Measure(
                "distinct2",
                "share of distinct word pairs, all answers together",
                "higher",
                needs_reference=False,
            ),
        )
    }
)


def answer_scores(
    task: Task,
    inputs: Sequence[str],
    generated: Sequence[str],
    references: Sequence[str] | None,
    *,
    bertscore: BertScorer | None,
    finished: Sequence[bool],
) -> Scores:
    """Return one score per sample for every measure of `task` that texts alone decide, in the order
    of `MEASURES`.

    These are what `task.metrics` asks for, and `words`, `repetition`, `empty`, `cut` and
    `malformed` of every task.
    references: what the answers ought to be; without them, measures that need one are left out.
    bertscore: may be None if the task does not ask for BERTScore. finished: whether each answer
    ended by itself, and not because of the length limit.
    Raises DataError if the sequences differ in length, or for a BERTScore without a scorer.
    """
    _check_lengths(generated, inputs=inputs, references=references, finished=finished)
    scores = _own_scores(task, inputs, generated, finished)
    if references is not None:
        scores |= _reference_scores(task, generated, references, bertscore)
    return {name: scores[name] for name in MEASURES if name in scores}


def _check_lengths(
    generated: Sequence[str], **others: Sequence[str] | Sequence[bool] | None
) -> None:
    for name, values in others.items():
        if values is not None and len(values) != len(generated):
            raise DataError(f"there are {len(generated)} generated texts, but {len(values)} {name}")


def _own_scores(
    task: Task, inputs: Sequence[str], generated: Sequence[str], finished: Sequence[bool]
) -> Scores:
    """Return the scores that need no reference."""
    empty = [_is_empty(text) for text in generated]
    malformed = [blank or not ended for blank, ended in zip(empty, finished, strict=True)]
    scores = {"words": words(generated), "repetition": repetition(generated)}
    if "haiku" in task.metrics:
        scores |= _haiku_scores(inputs, generated)
        malformed = [
            bad or not fits for bad, fits in zip(malformed, scores["three_lines"], strict=True)
        ]
    flags = {"empty": empty, "cut": [not ended for ended in finished], "malformed": malformed}
    return scores | {name: [float(flag) for flag in column] for name, column in flags.items()}


def _haiku_scores(inputs: Sequence[str], generated: Sequence[str]) -> Scores:
    forms = [haiku_form(text) for text in generated]
    return {
        "poem_575": [float(form.is_575) for form in forms],
        "three_lines": [float(form.three_lines) for form in forms],
        "lines_right": [form.lines_right / len(FORM) for form in forms],
        "keyword_use": keyword_use(inputs, generated),
    }


def _reference_scores(
    task: Task, generated: Sequence[str], references: Sequence[str], bertscore: BertScorer | None
) -> Scores:
    scores: Scores = {}
    if "rouge" in task.metrics:
        scores |= rouge(generated, references)
    if "bertscore" in task.metrics:
        if bertscore is None:
            raise DataError(f"task '{task.name}' asks for BERTScore, but no encoder was given")
        scores["bertscore"] = bertscore.score(generated, references)
    if "exact-match" in task.metrics:
        scores["exact_match"] = exact_match(generated, references)
    if "bleu" in task.metrics:
        scores["bleu"] = bleu(generated, references)
    return scores


def _is_empty(text: str) -> bool:
    """Return whether nothing in `text` is visible."""
    return all(unicodedata.category(char) in BLANK for char in text)
