"""Measures of answers: one table of them all, from which files, reports and comparisons derive
theirs, and the scores of single answers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal, get_args

import regex

from loramix.data.tasks import Metric, Task
from loramix.errors import DataError
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.diversity import repetition, words
from loramix.metrics.haiku import FORM, haiku_form
from loramix.metrics.matching import exact_match, keyword_use
from loramix.metrics.rouge import rouge
from loramix.metrics.translation import bleu, bleu_signature, chrf, chrf_signature
from loramix.metrics.words import TOKENIZER

# what leaves no mark on paper; braille has a cell without dots
BLANK = regex.compile(r"[\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]*+")

# Measures that split texts into words, beside those that are splits of sacrebleu.
IN_WORDS = frozenset(
    ("rouge1", "rouge2", "rougeL", "keyword_use", "words", "repetition", "distinct1", "distinct2")
)
# Columns of score files that say in words what measured a measure.
ORIGINS = {
    "bertscore": "encoder",
    "rougeL": "tokenizer",
    "bleu": "BLEU signature",
    "chrf": "chrF signature",
}

Values = dict[str, list[float]]  # by name of the measure, one value per sample


Better = Literal["higher", "lower", "neither"]
Group = Literal["reference", "loss", "form", "style", "set"]


@dataclass(frozen=True)
class Measure:
    """One number that says something about answers.

    name: the key in code and in files.
    label: the name in words, for readers.
    group: `reference`: of an answer beside its reference; `loss`: from the model's loss on the
        reference; `form`: of a haiku; `style`: of any answer; `set`: of all answers together.
    metric: what a task asks for to have it measured; None: it is measured for every task.
    combined: whether it enters the combined score; such measures lie in 0 to 1.
    column: its name in a run's tables.
    """

    name: str
    label: str
    better: Better
    group: Group
    metric: Metric | None = None
    combined: bool = False
    column: str = ""

    @property
    def needs_reference(self) -> bool:
        """Whether there must be a reference to measure it."""
        return self.group in ("reference", "loss")


@dataclass(frozen=True)
class ScoreFile:
    """A CSV file of a run, and a table of its report: one row per model.

    metrics: it is written if a task asks for any of these.
    unit: of all its columns, where they have one.
    shows: the `means` of measures, the `form` of haikus, or the `loss` on references.
    """

    name: str
    title: str
    note: str
    better: Better
    metrics: frozenset[Metric]
    unit: str = ""
    shows: Literal["means", "form", "loss"] = "means"

    @property
    def file(self) -> str:
        """The name of the CSV file."""
        return f"{self.name}.csv"

    @property
    def measures(self) -> list[Measure]:
        """The measures whose means are its columns."""
        if self.shows != "means":
            return []
        return [each for each in MEASURES.values() if each.column and each.metric in self.metrics]


def _measures(*measures: Measure) -> Mapping[str, Measure]:
    """Return the measures by name, `combined` labelled with what it is the mean of."""
    parts = [measure.label for measure in _combined(measures)]
    text = f"mean of {', '.join(parts[:-1])} and {parts[-1]}, of those that a task has"
    table = {measure.name: measure for measure in measures}
    table["combined"] = replace(table["combined"], label=text)
    return MappingProxyType(table)


def _combined(measures: Iterable[Measure]) -> list[Measure]:
    """Return the measures that enter the combined score, that of the loss last."""
    chosen = [measure for measure in measures if measure.combined]
    return sorted(chosen, key=lambda measure: measure.group == "loss")


# In the order in which they are shown.
MEASURES = _measures(
    Measure("rouge1", "ROUGE-1", "higher", "reference", "rouge", column="rouge1"),
    Measure("rouge2", "ROUGE-2", "higher", "reference", "rouge", column="rouge2"),
    Measure("rougeL", "ROUGE-L", "higher", "reference", "rouge", combined=True, column="rougeL"),
    Measure(
        "bertscore", "BERTScore", "higher", "reference", "bertscore", combined=True, column="F1"
    ),
    Measure("loss", "loss per target token", "lower", "loss"),
    Measure("perplexity", "perplexity", "lower", "loss"),
    Measure(
        "probability",
        "probability of the reference's tokens (exp(-loss) of each sample)",
        "higher",
        "loss",
        combined=True,
    ),
    Measure("combined", "", "higher", "loss"),  # labelled in `_measures`
    Measure(
        "exact_match",
        "exact match",
        "higher",
        "reference",
        "exact-match",
        combined=True,
        column="exact match",
    ),
    Measure("bleu", "BLEU", "higher", "reference", "bleu", combined=True, column="BLEU"),
    Measure("chrf", "chrF", "higher", "reference", "chrf", combined=True, column="chrF"),
    Measure("poem_575", "three lines of 5, 7 and 5 syllables", "higher", "form", "haiku"),
    Measure("three_lines", "three lines", "higher", "form", "haiku"),
    Measure("lines_right", "share of lines with the right syllables", "higher", "form", "haiku"),
    Measure("keyword_use", "share of the input's keywords used", "higher", "form", "haiku"),
    Measure("words", "number of words", "neither", "style"),
    Measure("repetition", "share of word pairs that repeat", "lower", "style"),
    Measure("empty", "empty", "lower", "style"),
    Measure("cut", "ended by the length limit", "lower", "style"),
    Measure("malformed", "empty, cut or, for haikus, not three lines", "lower", "style"),
    Measure("distinct1", "share of distinct words, all answers together", "higher", "set"),
    Measure("distinct2", "share of distinct word pairs, all answers together", "higher", "set"),
)
COMBINED = tuple(measure.name for measure in _combined(MEASURES.values()))

SCORE_FILES = (
    ScoreFile(
        "rouge",
        "ROUGE",
        "F1, 0 to 1, mean over the same withheld test samples for every model.",
        "higher",
        frozenset({"rouge"}),
        unit="F1",
    ),
    ScoreFile(
        "bertscore",
        "BERTScore",
        "F1, mean over the same withheld test samples; an empty answer scores 0.",
        "higher",
        frozenset({"bertscore"}),
        unit="F1",
    ),
    ScoreFile(
        "accuracy",
        "Accuracy",
        "Mean over the same withheld test samples. Exact match: share of answers that are the "
        "reference, case, articles and surrounding punctuation aside. BLEU and chrF: of single "
        "answers, 0 to 1.",
        "higher",
        frozenset({"exact-match", "bleu", "chrf"}),
    ),
    ScoreFile(
        "syllables",
        "Haiku form",
        "Shares of all answers, empty and malformed ones included; 5-7-5 by a pronouncing "
        "dictionary.",
        "neither",
        frozenset({"haiku"}),
        shows="form",
    ),
    ScoreFile(
        "test_loss",
        "Test loss",
        "Mean loss per target token when a model reads the references of the test samples; lower "
        "is better.",
        "lower",
        frozenset(get_args(Metric)),
        shows="loss",
    ),
)


def answer_scores(
    task: Task,
    inputs: Sequence[str],
    generated: Sequence[str],
    references: Sequence[str] | None,
    *,
    bertscore: BertScorer | None,
    finished: Sequence[bool],
) -> Values:
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
        scores |= reference_scores(task, generated, references, bertscore)
    return {name: scores[name] for name in MEASURES if name in scores}


def _check_lengths(
    generated: Sequence[str], **others: Sequence[str] | Sequence[bool] | None
) -> None:
    for name, values in others.items():
        if values is not None and len(values) != len(generated):
            raise DataError(f"there are {len(generated)} generated texts, but {len(values)} {name}")


def _own_scores(
    task: Task, inputs: Sequence[str], generated: Sequence[str], finished: Sequence[bool]
) -> Values:
    """Return the scores that need no reference."""
    empty = [_is_empty(text) for text in generated]
    malformed = [blank or not ended for blank, ended in zip(empty, finished, strict=True)]
    scores = {"words": words(generated), "repetition": repetition(generated)}
    if "haiku" in task.metrics:
        scores |= _haiku_scores(inputs, generated)
        well_formed = scores["three_lines"]
        malformed = [bad or not fits for bad, fits in zip(malformed, well_formed, strict=True)]
    cut = [not ended for ended in finished]
    for name, flags in (("empty", empty), ("cut", cut), ("malformed", malformed)):
        scores[name] = [float(flag) for flag in flags]
    return scores


def _haiku_scores(inputs: Sequence[str], generated: Sequence[str]) -> Values:
    forms = [haiku_form(text) for text in generated]
    return {
        "poem_575": [float(form.is_575) for form in forms],
        "three_lines": [float(form.three_lines) for form in forms],
        "lines_right": [form.lines_right / len(FORM) for form in forms],
        "keyword_use": keyword_use(inputs, generated),
    }


def reference_scores(
    task: Task, generated: Sequence[str], references: Sequence[str], bertscore: BertScorer | None
) -> Values:
    """Return one score per sample for every measure against references that the task asks for."""
    scores: Values = {}
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
    if "chrf" in task.metrics:
        scores["chrf"] = chrf(generated, references)
    return scores


@cache
def tokenizer(measure: str) -> str:
    """Return what splits the texts for a measure, settings and version; empty where nothing does.

    The combined score depends on those of its parts.
    """
    if measure == "bleu":
        return bleu_signature()
    if measure == "chrf":
        return chrf_signature()
    return TOKENIZER if measure in IN_WORDS else ""


def _is_empty(text: str) -> bool:
    """Return whether nothing in `text` is visible."""
    return BLANK.fullmatch(text) is not None
