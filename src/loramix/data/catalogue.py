"""The built-in tasks."""

from collections.abc import Mapping
from types import MappingProxyType

from loramix.data.tasks import PACKAGE, Cleaning, Task
from loramix.errors import DataError, did_you_mean


def built_in(name: str) -> Task:
    """Return the built-in task `name`; raises DataError with the nearest name for any other."""
    if name not in BUILT_IN:
        known = ", ".join(BUILT_IN)
        raise DataError(
            f"no built-in task '{name}'{did_you_mean(name, BUILT_IN)}; there are: {known}"
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
        min_target_words=5, max_target_words=19, whitespace="lines"
    ),  # 3 to 17, and two slashes
    metrics=("rouge", "bertscore", "haiku"),
)
# The reference reads Kaggle's spsayakpaul/arxiv-paper-abstracts (columns `summaries`, `titles`). No
# copy of it on the Hub is known; this is the nearest data set there: abstracts and titles of
# machine learning papers on arXiv. For Kaggle's file, set source, input_column and target_column.
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
        min_input_words=20,
        max_input_words=400,
        min_target_words=2,
        max_target_words=30,
        whitespace="collapse",
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
    cleaning=Cleaning(whitespace="lines"),
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
    cleaning=Cleaning(whitespace="collapse"),
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
    cleaning=Cleaning(whitespace="collapse"),
    metrics=("rouge", "exact-match", "bleu"),
)
# Like the reference's, the prompt of a question is the question alone: the gates have to tell these
# three tasks apart without a name in the prompt.
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
    cleaning=Cleaning(duplicates="pair", whitespace="collapse"),
    metrics=("exact-match", "bleu"),
    max_new_tokens=16,
)
_MEDQA = _COMMONSENSE_QA.model_copy(
    update={
        "name": "medqa",
        "source": "GBaker/MedQA-USMLE-4-options",
        "target_column": "answer_idx",
        "choices_column": "options",
        # A longer input would be cut at its end, where the choices stand.
        "cleaning": Cleaning(max_input_words=300, duplicates="pair", whitespace="collapse"),
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
_ALL = (
    *(_HAIKU, _TITLE, _COMMONSENSE_QA, _MEDQA, _SCIENCE_QA),
    *(_DEMO_HAIKU, _DEMO_TITLE, _DEMO_COMMAND),
)
BUILT_IN: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
