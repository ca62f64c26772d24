"""How the gates of the compared mixtures route, and a warning where they do not."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from loramix.comparison.asking import ROUTING
from loramix.comparison.contenders import Contender, Place
from loramix.report.content import RoutingWeights, WeightRow, mean_weights
from loramix.storage.files import read_csv

ALONE, EVEN = (
    0.9,
    0.02,
)  # a mean weight from which one expert does all; a distance from which all do the same

Means = Mapping[str, Mapping[str, float]]  # mean weights by task, then expert


def routings(place: Place, models: Sequence[Contender]) -> list[RoutingWeights]:
    """Return how every gated mixture, of its first seed, routes on every test set."""
    shown: dict[str, Contender] = {}
    for model in models:
        if model.gated:
            shown.setdefault(model.label, model)
    return [
        _routing(model, test_set, read_csv(place.root / model.key / test_set / ROUTING))
        for model in shown.values()
        for test_set in place.recipe.comparison.test_sets
        if (place.root / model.key / test_set / ROUTING).is_file()
    ]


def collapse(means: Means) -> list[str]:
    """Return in words where gates do not tell tasks apart: one expert for all of them, or all
    experts alike.

    means: the mean weight of every expert on every task's prompts. Questions of a single task show
        no collapse.
    """
    return [*_collapsed(means)] if len(means) > 1 else []


def _collapsed(means: Means) -> Iterator[str]:
    experts = list(next(iter(means.values())))
    for expert in experts if len(experts) > 1 else ():
        if all(of_task[expert] >= ALONE for of_task in means.values()):
            yield f"collapsed: '{expert}' gets at least {ALONE:.0%} of the weight on every task"
    spread = max(
        max(of[expert] for of in means.values()) - min(of[expert] for of in means.values())
        for expert in experts
    )
    if spread < EVEN:
        yield f"no routing: no expert's mean weight differs by {EVEN} or more between the tasks"


def _routing(model: Contender, test_set: str, rows: Sequence[Mapping[str, str]]) -> RoutingWeights:
    weights = [
        WeightRow(row["layer"], row["task"], row["expert"], float(row["weight"])) for row in rows
    ]
    facts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        entropy, squares = (
            fmean(float(row[key]) for row in of_task) for key in ("entropy", "concentration")
        )
        facts.append((task, f"mean entropy {entropy:.3f} nats, mean Σw² {squares:.3f}"))
    return RoutingWeights(
        f"{model.label}, seed {model.seed}, {test_set}",
        weights,
        facts,
        collapse(mean_weights(weights)),
    )
