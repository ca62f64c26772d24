"""Many experts, one for each task of a folder: the mixture beside all that could take its place.

    python benchmarks/many_experts.py TASKS [--out results/many-experts] [KEY=VALUE …]

TASKS is a folder with a `tasks.yaml`: for every task its file, with columns `input` and `target`,
its prompt and paraphrases. `--haikus` and `--abstracts` add the two tasks of the mission from files
of theirs. Settings are those of many-experts.yaml beside this file, changed by KEY=VALUE as on the
command line of `loramix compare`. Everything is resumable, and adapters are trained once; with
twenty tasks of 700 samples it takes about a day on two cores, most of it the adapters and the
forward passes of the rivals. Beside what a comparison leaves, it writes curve.csv and curve.png:
the share of the right expert's gain against the number of experts, and of all experts against the
number of prompts that gates know of each, of gates that are not trained; and unseen.csv: what
the first mixture makes of every task once the task's own expert is taken away.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from unseen import FORMS, Asker, Unseen, unseen

from loramix import MixtureModel
from loramix.comparison.compare import compare
from loramix.comparison.comparison import Comparison
from loramix.comparison.models import compared_models
from loramix.data.tasks import Task
from loramix.experiment.answers import mean_loss
from loramix.experiment.reading import load_recipe
from loramix.experiment.run import MODELS, Run
from loramix.experiment.stages.gate import untrained
from loramix.experiment.training.gate_start import start_gates
from loramix.storage.files import atomic_file, write_csv

SETTINGS = Path(__file__).with_name("many-experts.yaml")
METRICS = {"exact-match", "bleu", "chrf", "rouge"}
SIZES = (2, 4, 8, 16, 20)
EXAMPLES = (1, 4, 16, 64)


def tasks_of(folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the tasks of a folder as a recipe holds them, after those of the mission."""
    tasks: list[dict[str, object]] = []
    if options.haikus:
        tasks.append({"use": "haiku", "source": str(options.haikus), "max_new_tokens": 32})
    if options.abstracts:
        columns = {"input_column": "summaries", "target_column": "titles"}
        titles = {"use": "arxiv-title", "source": str(options.abstracts), "max_new_tokens": 32}
        tasks.append({**titles, **columns, "max_input_tokens": 160})
    described = yaml.safe_load((folder / "tasks.yaml").read_text(encoding="utf-8"))
    for name, task in described.items():
        tasks.append(
            {
                "name": name,
                "source": str(folder / task["file"]),
                "input_column": "input",
                "target_column": "target",
                "prompt": task["prompt"],
                "paraphrases": task["paraphrases"],
                "metrics": [task["metric"] if task["metric"] in METRICS else "rouge"],
                "cleaning": {"duplicates": "pair"},  # many answers repeat rightfully
                "max_input_tokens": 160,
            }
        )
    return tasks


def write_recipe(options: argparse.Namespace) -> Path:
    """Write the recipe with the tasks of the folder beside the results, and return its place."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    settings["tasks"] = tasks_of(options.tasks, options)[: options.first]
    options.out.mkdir(parents=True, exist_ok=True)
    file: Path = options.out / "many-experts.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "utf-8")
    return file


class Point(NamedTuple):
    """The mean share of gain over tasks, and that of the worst task."""

    experts: int
    examples: int
    prompts: str
    mean: float
    worst: float


class Curve:
    """The share of gain of gates that are not trained, by the number of experts."""

    def __init__(self, run: Run, samples: int) -> None:
        self._run, self._samples = run, samples
        self._base = run.load_base()
        self._known: dict[tuple[str, str, str], float] = {}  # losses of the base and of own experts

    def points(self) -> Iterator[Point]:
        """Yield the points of both curves."""
        tasks, gate = self._run.recipe.tasks, self._run.recipe.gate
        sizes = sorted({min(size, len(tasks)) for size in SIZES})
        pairs = [(size, gate.examples) for size in sizes]
        pairs += [(len(tasks), examples) for examples in EXAMPLES if examples != gate.examples]
        for size, examples in pairs:
            spec = gate.model_copy(update={"examples": examples})
            run = self._run.changed(tasks=tasks[:size], gate=spec)
            base = run.load_base()
            mixture = untrained(run, base).eval()
            start_gates(run, mixture, base.tokenizer)
            for form in FORMS:
                shares = [self._share(run, mixture, task, form) for task in run.recipe.tasks]
                yield Point(size, examples, form, sum(shares) / len(shares), min(shares))

    def _share(self, run: Run, mixture: MixtureModel, task: Task, form: str) -> float:
        ask = Asker(run, mixture, self._base.tokenizer, self._samples)
        rows = ask.rows(task, form)
        for kind, weights in (("base", {}), ("own", {task.name: 1.0})):
            if (kind, task.name, form) not in self._known:
                self._known[kind, task.name, form] = mean_loss(ask.losses(rows, weights))
        base, own = (self._known[kind, task.name, form] for kind in ("base", "own"))
        return (base - mean_loss(ask.losses(rows))) / (base - own)


def write_curve(points: Sequence[Point], folder: Path) -> None:
    """Write the points as a table and as a picture."""
    write_csv(folder / "curve.csv", Point._fields, points)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_experts, by_examples = figure.subplots(1, 2, sharey=True)
    most, usual = max(points).experts, points[0].examples
    _draw(by_experts, [each for each in points if each.examples == usual], "experts")
    _draw(by_examples, sorted(each for each in points if each.experts == most), "examples")
    by_examples.set(xlabel="prompts known of each expert", xscale="log")
    for axis, places in ((by_experts, SIZES), (by_examples, EXAMPLES)):
        axis.set_xticks(places, labels=map(str, places))
    by_experts.set_xlim(1, most + 1)
    by_experts.set(xlabel="experts", ylabel="share of the right expert's gain")
    by_experts.legend(frameon=False, fontsize=8)
    with atomic_file(folder / "curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw(axis: Axes, points: Sequence[Point], of: str) -> None:
    for form in FORMS:
        own = [point for point in points if point.prompts == form]
        places = [getattr(point, of) for point in own]
        line = axis.plot(places, [point.mean for point in own], "o-", label=f"{form}, mean")[0]
        worst = [point.worst for point in own]
        axis.plot(places, worst, "o:", color=line.get_color(), label=f"{form}, worst task")
    axis.axhline(1.0, color="grey", linewidth=1)
    axis.grid(alpha=0.3)


def main() -> None:
    """Compare, and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, help="folder with tasks.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--haikus", type=Path, help="file of the haiku task")
    parser.add_argument("--abstracts", type=Path, help="file of abstracts and titles")
    parser.add_argument("--first", type=int, help="only so many tasks")
    parser.add_argument("--out", type=Path, default=Path("results/many-experts"))
    parser.add_argument("--curve-samples", type=int, default=12, help="of each task; 0: no curve")
    parser.add_argument("--unseen-samples", type=int, default=12, help="of each task; 0: none")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(str(write_recipe(options)), options.overrides)
    folder = compare(recipe, options.out)
    print(folder / "report.html")
    run = Run(recipe, options.out)
    if options.unseen_samples:
        first = next(model for model in compared_models(Comparison(run))[0] if model.gated)
        found = unseen(run, first.folder / MODELS, options.unseen_samples)
        write_csv(folder / "unseen.csv", Unseen._fields, found)
        print(folder / "unseen.csv")
    if options.curve_samples:
        curve = Curve(run, options.curve_samples)
        write_curve(list(curve.points()), folder)
        print(folder / "curve.png")


if __name__ == "__main__":
    main()
