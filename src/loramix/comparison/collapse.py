"""The routing weights of the compared mixtures, and a warning where their gates do not route."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from loramix.comparison.asking import ROUTING
from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.report.content import RoutingWeights, WeightRow, mean_weights
from loramix.storage.files import read_csv

ALONE = 0.9  # a mean weight from which one expert does all
EVEN = 0.02  # a difference of mean weights below which all tasks get the same

Means = Mapping[str, Mapping[str, float]]  # mean weights by task, then expert


def routing_weights(
    comparison: Comparison, models: Sequence[ComparedModel]
) -> list[RoutingWeights]:
    """Return the weights that the gates of these mixtures give on every test set."""
    found = []
    for model in models:
        for test_set in comparison.recipe.comparison.test_sets:
            file = comparison.folder(model, test_set) / ROUTING
            if file.is_file():
                title = f"{model.label}, seed {model.seed}, {test_set}"
                own = comparison.recipe.own_experts
                found.append(_routing_weights(title, read_csv(file), own))
    return found


def collapse(means: Means, own: Mapping[str, str]) -> list[str]:
    """Return in words where gates do not tell tasks apart: one expert for all of them, or all
    experts alike.

    means: the mean weight of every expert on every task's prompts.
    own: the expert of every task that has one. Tasks of a single expert show no collapse: they
        rightly get the same weights.
    """
    routed = {task: of_task for task, of_task in means.items() if task in own}
    return [*_collapsed(routed)] if len({own[task] for task in routed}) > 1 else []


def _collapsed(means: Means) -> Iterator[str]:
    experts = list(next(iter(means.values())))
    spreads = []
    for expert in experts:
        of_tasks = [of_task[expert] for of_task in means.values()]
        spreads.append(max(of_tasks) - min(of_tasks))
        if len(experts) > 1 and min(of_tasks) >= ALONE:
            yield f"collapsed: '{expert}' gets at least {ALONE:.0%} of the weight on every task"
    if max(spreads) < EVEN:
        yield f"no routing: no expert's mean weight differs by {EVEN} or more between the tasks"


def _routing_weights(
    title: str, rows: Sequence[Mapping[str, str]], own: Mapping[str, str]
) -> RoutingWeights:
    weights = []
    by_task: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
        weights.append(WeightRow(row["layer"], row["task"], row["expert"], float(row["weight"])))
    facts = []
    for task, of_task in by_task.items():
        entropy = fmean(float(row["entropy"]) for row in of_task)
        squares = fmean(float(row["concentration"]) for row in of_task)
        facts.append((task, f"mean entropy {entropy:z.3f} nats, mean Σw² {squares:z.3f}"))
    return RoutingWeights(title, weights, facts, collapse(mean_weights(weights), own))
