"""Test sets: the withheld samples of a run, asked in several ways.

named        each task's samples in the task's own prompt, as all models were trained
bare         the same samples without any prompt: the input alone, so that no task is named
paraphrased  the same samples in other wordings of the prompt, one of the task's for each sample
mixed        one task's prompt about the inputs of another (a haiku about an abstract), which has no
             reference; of tasks whose answers have a form that can be checked without one
crossed      the same for every task, its samples spread over the inputs of all others
unknown      a task that no expert knows: the first task's `inverse`, which asks for the input given
             the target
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from loramix.config import PLACEHOLDER
from loramix.data.samples import Sample, hash_fraction
from loramix.data.tasks import Task
from loramix.experiment.recipe import Recipe, TestSet
from loramix.experiment.run import Run
from loramix.storage.files import read_csv, write_csv

QUESTIONS = "questions.csv"
UNKNOWN = "-inverse"  # ends the name of a task that asks for another's inputs


@dataclass(frozen=True)
class Question:
    """A withheld sample as it is asked.

    id: the sample's. reference: empty where there is none.
    """

    test_set: str
    task: str
    id: str
    prompt: str
    input: str
    reference: str


def questions(run: Run) -> list[Question]:
    """Return the questions of the recipe's test sets; the same ones for the same data and seed."""
    recipe, spec = run.recipe, run.recipe.comparison
    found = []
    for name in spec.test_sets:
        limit = spec.test_samples if name in ("named", "bare") else spec.side_samples
        withheld = {task.name: run.manifest.of(task, "test")[:limit] for task in recipe.tasks}
        found += [Question(name, *rest) for rest in _ASKED[name](recipe, withheld)]
    return found


def asked_task(recipe: Recipe, question: Question) -> Task:
    """Return the task of a question, with the question's own prompt in the place of the task's."""
    known = {task.name: task for task in recipe.tasks}
    longest = recipe.longest_prompt
    if question.task in known:
        task = known[question.task]
        limit = task.max_input_tokens if question.test_set in ("named", "bare") else longest
        return task.model_copy(update={"prompt": question.prompt, "max_input_tokens": limit})
    task = known[question.task.removesuffix(UNKNOWN)]
    changes = {"name": question.task, "prompt": question.prompt, "metrics": ("rouge", "bertscore")}
    return task.model_copy(update={**changes, "max_input_tokens": longest})


def write_questions(path: Path, asked: Sequence[Question]) -> None:
    """Write the questions as a CSV file."""
    write_csv(path, [field.name for field in fields(Question)], map(astuple, asked))


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file, in its order."""
    return [Question(**row) for row in read_csv(path)]


Withheld = Mapping[str, Sequence[Sample]]  # by task
Asked = Iterator[tuple[str, str, str, str, str]]  # task, id, prompt, input, reference


def _named(recipe: Recipe, withheld: Withheld) -> Asked:
    for task in recipe.tasks:
        for sample in withheld[task.name]:
            yield task.name, sample.id, task.prompt, sample.input, sample.target


def _bare(recipe: Recipe, withheld: Withheld) -> Asked:
    for task in recipe.tasks:
        for sample in withheld[task.name]:
            yield task.name, sample.id, PLACEHOLDER, sample.input, sample.target


def _paraphrased(recipe: Recipe, withheld: Withheld) -> Asked:
    for task in recipe.tasks:
        choices = task.paraphrases
        for sample in withheld[task.name] if choices else ():
            prompt = choices[int(hash_fraction(sample, "paraphrase") * len(choices))]
            yield task.name, sample.id, prompt, sample.input, sample.target


def _mixed(recipe: Recipe, withheld: Withheld) -> Asked:
    for asked in recipe.tasks:
        for other in recipe.tasks:
            if "haiku" in asked.metrics and other is not asked and not other.conversational:
                for sample in withheld[other.name]:
                    yield asked.name, sample.id, asked.prompt, sample.input, ""


def _crossed(recipe: Recipe, withheld: Withheld) -> Asked:
    single = [task for task in recipe.tasks if not task.conversational]
    for place, asked in enumerate(single):
        others = [*single[place + 1 :], *single[:place]]
        for turn in range(len(withheld[asked.name]) if others else 0):
            of_other = withheld[others[turn % len(others)].name]
            sample = of_other[turn // len(others) % len(of_other)]
            yield asked.name, sample.id, asked.prompt, sample.input, ""


def _unknown(recipe: Recipe, withheld: Withheld) -> Asked:
    task = next((task for task in recipe.tasks if task.inverse), None)
    if task is not None and task.inverse is not None:
        for sample in withheld[task.name]:
            yield f"{task.name}{UNKNOWN}", sample.id, task.inverse, sample.target, sample.input


_ASKED: dict[TestSet, Callable[[Recipe, Withheld], Asked]] = {
    "named": _named,
    "bare": _bare,
    "paraphrased": _paraphrased,
    "mixed": _mixed,
    "crossed": _crossed,
    "unknown": _unknown,
}
