"""A run in a few sentences: what was trained, what won, and what the mixture is worth."""

from collections.abc import Mapping, Sequence

from loramix.experiment.labels import BASE, MIXTURE, expert_key, label
from loramix.experiment.recipe import Recipe

Losses = Mapping[str, Mapping[str, float]]  # of a model's label: by task, per target token
DIGITS = 3  # of a loss, as the page shows it: what looks equal is called equal


def sentences(recipe: Recipe, losses: Losses, *, gates_stayed: bool = False) -> list[str]:
    """Return the summary of a run: the verdict on its mixture first, where losses allow one.

    losses: of every model on the withheld samples; empty where a run measures none.
    gates_stayed: whether the training of gates was undone.
    """
    told = [_trained(recipe)]
    if gates_stayed:
        told.append(
            "Training has not helped the gates on validation samples: they stay where they started."
        )
    if losses:
        own = {
            task: label(expert_key(expert))
            for task, expert in recipe.own_experts.items()
            if label(expert_key(expert)) in losses
        }
        if own:
            told = [verdict(losses, own), _kept(losses, own), *told]
        told.append(_best(losses, [task.name for task in recipe.tasks]))
        told.append(
            "These are losses of one seed, without intervals; for those, run loramix compare."
        )
    return [each for each in told if each]


def verdict(losses: Losses, own: Mapping[str, str]) -> str:
    """Return in one sentence whether the mixture is as good as the right expert of every task."""
    losses = _shown(losses)
    mixture = losses[label(MIXTURE)]
    behind = [task for task, expert in own.items() if mixture[task] > losses[expert][task]]
    if not behind:
        return "The mixture is at least as good as the right expert, on every task."
    pairs = [
        f"{task} ({mixture[task]:.{DIGITS}f} beside {losses[own[task]][task]:.{DIGITS}f})"
        for task in behind
    ]
    where = "every task" if len(behind) == len(own) > 1 else f"{len(behind)} of {len(own)} tasks"
    return f"The mixture has a higher loss than the right expert on {where}: {_listed(pairs)}."


def _kept(losses: Losses, own: Mapping[str, str]) -> str:
    """Return how much of each expert's gain over the base the mixture keeps."""
    base, mixture = losses[label(BASE)], losses[label(MIXTURE)]
    kept, worse = [], []
    for task, expert in own.items():
        gain = base[task] - losses[expert][task]
        if gain > 0:
            kept.append(f"{100 * (base[task] - mixture[task]) / gain:.0f} % on {task}")
        else:
            worse.append(task)
    told = (
        f"Of what the right expert gains over the base, it keeps {_listed(kept)}." if kept else ""
    )
    if worse:
        told += f" The expert of {_listed(worse)} gains nothing over the base on its own task."
    return told.strip()


def _trained(recipe: Recipe) -> str:
    """Return what was trained, and from what."""
    own = [task.name for task in recipe.trained]
    trained = f"adapters for {_listed(own)}, and gates" if own else "gates"
    given = f" with the given {_listed(list(recipe.experts))}" if recipe.experts else ""
    return (
        f"Trained on {recipe.base.name}: {trained} that mix them{given} without being told the "
        f"task (the mixture, {label(MIXTURE)} in the tables)."
    )


def _best(losses: Losses, tasks: Sequence[str]) -> str:
    """Return the models with the lowest loss on every task."""
    losses, won = _shown(losses), []
    for task in tasks:
        lowest = min(loss[task] for loss in losses.values())
        winners = [model for model, loss in losses.items() if loss[task] == lowest]
        won.append(f"{' and '.join(winners)} on {task} ({lowest:.{DIGITS}f})")
    return f"Lowest loss on withheld samples: {', '.join(won)}."


def _shown(losses: Losses) -> Losses:
    return {
        model: {task: round(loss, DIGITS) for task, loss in by_task.items()}
        for model, by_task in losses.items()
    }


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
