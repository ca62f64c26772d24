"""Tasks: what is read from where, how it is cleaned, how a prompt is made of it and how answers are
scored.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramix.config import PLACEHOLDER, fill

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
