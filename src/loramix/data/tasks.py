"""Tasks: the source of the samples, their cleaning, their prompt and the metrics of answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramix.config import PLACEHOLDER, fill

# The prefix of sources that ship with loramix. Recipes and fingerprints hold it instead of a path,
# so that they are the same on every machine.
PACKAGE = "package:"

# What `Task.expert` says beside the names of given adapters, none of which may be called so.
OWN, NO_EXPERT = "own", "none"

Metric = Literal["rouge", "bertscore", "haiku", "exact-match", "bleu", "chrf"]
Format = Literal["auto", "columns", "prompt-completion", "messages", "instruction", "text"]
Whitespace = Literal["keep", "lines", "collapse"]
Split = Literal["train", "validation", "test"]
Pair = tuple[str, str]  # an input and its target


class Cleaning(BaseModel):
    """The rules by which samples of a source are kept.

    Limits are inclusive, count words (runs of characters between white space, so the ` / ` of a
    haiku counts as one) and apply after normalising white space.

    duplicates: the part by which two samples are one, case aside. `target` is for free text, where
        a repeated target would be seen in training and asked for again in the test; `pair`, of
        input and target, for answers from a small set, which repeat rightfully.
    whitespace: `keep` leaves texts as they are, but for line ends, which become `\\n`; `lines` puts
        ` / ` in the place of line breaks and one space in that of any other run of white space;
        `collapse` puts one space everywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_input_words: int = Field(default=1, ge=1)
    max_input_words: int | None = Field(default=None, ge=1)
    min_target_words: int = Field(default=1, ge=1)
    max_target_words: int | None = Field(default=None, ge=1)
    duplicates: Literal["target", "pair"] = "target"
    whitespace: Whitespace = "keep"

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> "Cleaning":
        limits = (
            ("input", self.min_input_words, self.max_input_words),
            ("target", self.min_target_words, self.max_target_words),
        )
        for kind, low, high in limits:
            if high is not None and high < low:
                raise ValueError(
                    f"max_{kind}_words ({high}) is below min_{kind}_words ({low}): "
                    "nothing would be left"
                )
        return self


class Task(BaseModel):
    """A task to learn: pairs of input and target from a source, and the prompt that asks for it.

    source: a Hub data set id; a folder laid out like one, or of files that are not; or a file, a
        pattern such as `data/*.csv` or a list of files, relative to the current folder.
        `package:` stands for loramix's own files. See `loramix.data.tables` for their kinds.
    config: which configuration of a data set that has several.
    revision: of a Hub data set.
    split: of a data set or a folder.
    validation_split, test_split: those of the source's own, or for a file another file, in the
        place of a part of `split`.
    format: how rows hold inputs and targets, see `loramix.data.formats`; `auto` recognises it by
        the names of the columns. A task of a loaded recipe has another format than `auto`.
    choices_column: the choices of a multiple-choice question. The input becomes the question with
        its choices; the target, the text of the right one, is found by the answer in the target
        column (see `loramix.data.choices`).
    empty_column: rows in which this column holds something, a picture for instance, are left out.
    paraphrases: the prompt in other words.
    inverse: a prompt that takes a target and asks for the input.
    samples: the number of cleaned samples to keep; None leaves it to the recipe.
    expert: the adapter that is right for the task: `own`, which is trained on it and has its name,
        one of the recipe's `experts` by name, or `none`. What a task without an expert asks is
        answered and scored, and nothing learns from it but its own full finetune.
    max_input_tokens: the longest whole prompt, template included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)  # also of its files
    source: str | tuple[str, ...] = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    format: Format = "auto"
    input_column: str | None = None
    target_column: str | None = None
    choices_column: str | None = None
    empty_column: str | None = None
    prompt: str = PLACEHOLDER
    paraphrases: tuple[str, ...] = ()
    inverse: str | None = None
    cleaning: Cleaning = Cleaning()
    metrics: tuple[Metric, ...] = ("rouge", "bertscore")
    samples: int | None = Field(default=None, ge=1)
    expert: str = OWN
    max_input_tokens: int = Field(default=512, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _two_columns_are_a_format(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("format", "auto") != "auto":
            return values
        given = [values.get(key) for key in ("input_column", "target_column")]
        return {**values, "format": "columns"} if all(given) else values

    @model_validator(mode="after")
    def _prompts_take_one_input(self) -> "Task":
        prompts = [("prompt", self.prompt), *(("paraphrase", text) for text in self.paraphrases)]
        if self.inverse is not None:
            prompts.append(("inverse", self.inverse))
        for kind, text in prompts:
            found = text.count(PLACEHOLDER)
            if found != 1:
                raise ValueError(
                    f"{kind} {text!r} must hold {PLACEHOLDER} exactly once, "
                    f"and holds it {found} times"
                )
        return self

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> "Task":
        if self.format == "columns" and not (self.input_column and self.target_column):
            raise ValueError("format columns needs input_column and target_column")
        if self.format not in ("auto", "columns") and self.choices_column is not None:
            raise ValueError(f"choices_column is for format columns, not for {self.format}")
        if self.conversational:
            for name, usual in (("prompt", PLACEHOLDER), ("paraphrases", ()), ("inverse", None)):
                if getattr(self, name) != usual:
                    raise ValueError(f"{name} is for single questions, not for conversations")
        return self

    @property
    def conversational(self) -> bool:
        """Whether inputs are conversations, as `Conversation.to_text` writes them, and targets are
        answers, as `answer_text` writes them.
        """
        return self.format == "messages"

    def render(self, text: str) -> str:
        """Return the prompt for one input; no braces but the template's placeholder count."""
        return fill(self.prompt, text)
