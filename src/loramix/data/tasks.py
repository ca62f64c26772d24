"""Tasks: what is read from where, how it is cleaned, how a prompt is made of it and how answers are
scored.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramix.config import PLACEHOLDER, fill
from loramix.errors import DataError, did_you_mean

# prefix of sources that ship with loramix, the same in every recipe on every machine
PACKAGE = "package:"

Metric = Literal["rouge", "bertscore", "haiku", "exact-match", "bleu"]


class Cleaning(BaseModel):
    """Which samples of a source are kept.

    Limits count words (runs of characters between white space, so the ` / ` of a haiku counts as
    one), are inclusive, and apply after normalising white space.

    `duplicates` says what makes two samples one, case aside: the same `target` (free text, where a
    repeated target would be seen in training and asked for again in the test), or the same `pair`
    of input and target (answers out of a small set, which repeat rightfully).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_input_words: int = Field(default=1, ge=1)
    max_input_words: int | None = Field(default=None, ge=1)
    min_target_words: int = Field(default=1, ge=1)
    max_target_words: int | None = Field(default=None, ge=1)
    duplicates: Literal["target", "pair"] = "target"

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> "Cleaning":
        for kind, low, high in (
            ("input", self.min_input_words, self.max_input_words),
            ("target", self.min_target_words, self.max_target_words),
        ):
            if high is not None and high < low:
                raise ValueError(
                    f"max_{kind}_words ({high}) is below min_{kind}_words ({low}): nothing would "
                    "be left"
                )
        return self


class Task(BaseModel):
    """One thing to learn: pairs of input and target from a source, and the prompt that asks for it.

    `source` is a Hub data set id, a folder laid out like one, or a .parquet, .csv, .jsonl, .csv.gz
    or .jsonl.gz file (relative to the current folder; `package:` stands for loramix's own files).
    `revision` applies to Hub ids alone, `split` to Hub ids and folders. `samples` is how many
    cleaned samples to keep; None: as the recipe says. `max_input_tokens` bounds the whole prompt,
    template included.

    choices_column: the choices of a multiple-choice question. The input is then the question with
        its choices, the target the text of the right one, and the target column says which that is
        (see `loramix.data.choices`).
    empty_column: rows in which this column holds something, a picture for instance, are left out.
    paraphrases: the prompt in other words.
    inverse: a prompt that asks for the input and takes a target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
    )  # also the name of files and of an expert
    source: str = Field(min_length=1)
    revision: str | None = None
    split: str = "train"
    input_column: str
    target_column: str
    choices_column: str | None = None
    empty_column: str | None = None
    prompt: str
    paraphrases: tuple[str, ...] = ()
    inverse: str | None = None
    cleaning: Cleaning = Cleaning()
    metrics: tuple[Metric, ...] = ("rouge", "bertscore")
    samples: int | None = Field(default=None, ge=1)
    max_input_tokens: int = Field(default=512, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _prompts_take_one_input(self) -> "Task":
        prompts = [("prompt", self.prompt), *(("paraphrase", text) for text in self.paraphrases)]
        prompts += [("inverse", self.inverse)] if self.inverse is not None else []
        for kind, text in prompts:
            if (found := text.count(PLACEHOLDER)) != 1:
                raise ValueError(
                    f"{kind} {text!r} must hold {PLACEHOLDER} exactly once, and holds it {found} "
                    "times"
                )
        return self

    def render(self, text: str) -> str:
        """Return the prompt for one input; braces in `text` and other braces in the template mean
        nothing.
        """
        return fill(self.prompt, text)


def built_in(name: str) -> Task:
    """Return the built-in task `name`; raises DataError with the nearest name for any other."""
    if name not in BUILT_IN:
        raise DataError(
            f"no built-in task '{name}'{did_you_mean(name, BUILT_IN)}; there are: "
            f"{', '.join(BUILT_IN)}"
        )
    return BUILT_IN[name]


_HAIKU = Task(
    name="haiku",
    source="statworx/haiku",
    input_column="keywords",
    target_column="text",  # line / line / line
    prompt="write a haiku about {input}",
    paraphrases=(
        "compose a short three-line poem on: {input}",
        "{input}: put this into verse, five syllables, then seven, then five",
        "I would like a haiku with these words in it: {input}",
        "what would a Japanese nature poet have to say about {input}?",
    ),
    inverse="list the keywords of this poem: {input}",
    cleaning=Cleaning(
        min_target_words=5, max_target_words=19
    ),  # 3 to 17 words for 17 syllables, and two slashes
    metrics=("rouge", "bertscore", "haiku"),
)
# The reference reads Kaggle's spsayakpaul/arxiv-paper-abstracts (columns `summaries`, `titles`). No
# copy of it on the Hub is known; this is the nearest data set there: machine learning papers of
# arXiv, abstract and title. Kaggle's own file is used by setting source, input_column and
# target_column.
_TITLE = Task(
    name="arxiv-title",
    source="CShorten/ML-ArXiv-Papers",
    input_column="abstract",
    target_column="title",
    prompt="summarize: {input}",
    paraphrases=(
        "what would be a good headline for this text? {input}",
        "suggest a title for the paper with this abstract: {input}",
        "{input} In a few words, what is this study called?",
        "say in one line what the following is about: {input}",
    ),
    inverse="write the abstract of a paper with this title: {input}",
    cleaning=Cleaning(
        min_input_words=20, max_input_words=400, min_target_words=2, max_target_words=30
    ),
)
_DEMO_HAIKU = Task(
    name="demo-haiku",
    source=f"{PACKAGE}demo/haiku.jsonl",
    input_column="keywords",
    target_column="text",
    prompt=_HAIKU.prompt,
    paraphrases=_HAIKU.paraphrases,
    inverse=_HAIKU.inverse,
    metrics=_HAIKU.metrics,
)
_DEMO_TITLE = Task(
    name="demo-title",
    source=f"{PACKAGE}demo/title.jsonl",
    input_column="abstract",
    target_column="title",
    prompt=_TITLE.prompt,
    paraphrases=_TITLE.paraphrases,
    inverse=_TITLE.inverse,
)
_DEMO_COMMAND = Task(
    name="demo-command",
    source=f"{PACKAGE}demo/command.jsonl",
    input_column="request",
    target_column="command",
    prompt="write a shell command to {input}",
    paraphrases=(
        "what do I type in a terminal to {input}?",
        "one line of bash that can {input}:",
        "I am on a Linux machine and want to {input}. How?",
        "{input} (answer with the command alone)",
    ),
    inverse="explain what this shell command does: {input}",
    metrics=("rouge", "exact-match", "bleu"),
)
# Like the reference's, the prompt of a question is the question alone: it names no task, and the
# three ask alike.
_COMMONSENSE_QA = Task(
    name="commonsense-qa",
    source="tau/commonsense_qa",
    input_column="question",
    target_column="answerKey",
    choices_column="choices",
    prompt="{input}",
    paraphrases=(
        "answer this question: {input}",
        "which of the choices is right? {input}",
        "{input} \\n the right choice is:",
        "read the question, then repeat the best of its choices: {input}",
    ),
    cleaning=Cleaning(duplicates="pair"),
    metrics=("exact-match", "bleu"),
    max_new_tokens=16,
)
_MEDQA = _COMMONSENSE_QA.model_copy(
    update={
        "name": "medqa",
        "source": "GBaker/MedQA-USMLE-4-options",
        "target_column": "answer_idx",
        "choices_column": "options",
        # What is too long for a model is cut at its end, where the choices stand.
        "cleaning": Cleaning(max_input_words=300, duplicates="pair"),
        "max_new_tokens": 64,
    }
)
_SCIENCE_QA = _COMMONSENSE_QA.model_copy(
    update={
        "name": "science-qa",
        "source": "derek-thomas/ScienceQA",
        "target_column": "answer",
        "empty_column": "image",
        "max_new_tokens": 64,
    }
)
BUILT_IN: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            *(_HAIKU, _TITLE, _COMMONSENSE_QA, _MEDQA, _SCIENCE_QA),
            *(_DEMO_HAIKU, _DEMO_TITLE, _DEMO_COMMAND),
        )
    }
)
