"""The verdict: what a mixture claims, and whether the scores bear it out.

A mixture that is not told the task claims to be as good as the right expert, better than every
other single model of the same experts, and to need no task name in the prompt. All claims are about
`combined`, the mean of the scores against the reference, with paired intervals.
"""

from collections.abc import Sequence

from loramix.comparison.scores import ORACLE, Scores
from loramix.comparison.statistics import Estimate, share_of_gain
from loramix.experiment.recipe import Recipe
from loramix.report.content import Claim

KEPT_GAIN = 0.95  # of the oracle's gain over the base, without any task name in the prompt
_MEASURE = "combined"


def verdict(recipe: Recipe, scores: Scores) -> list[Claim]:
    """Return the claims of the first mixture that can be checked with the models and test sets of
    this recipe.
    """
    label = next(iter(recipe.mixtures()))
    tasks = [task.name for task in recipe.tasks]
    if label not in scores.labels:
        return []
    experts = {ORACLE, *(f"LoRA {task}" for task in tasks)}
    claims = [_as_good(scores, label, task) for task in tasks]
    claims += [
        _better(scores, label, other, tasks)
        for other in scores.labels
        if other not in {label, *experts}
    ]
    claims.append(_keeps(scores, label, tasks))
    return [claim for claim in claims if claim is not None]


def _as_good(scores: Scores, label: str, task: str) -> Claim | None:
    found = scores.difference(label, ORACLE, "named", [task], _MEASURE)
    if found is None:
        return None
    return Claim(
        f"{label} is not worse than the right expert on {task}", found.high >= 0, _in_words(found)
    )


def _better(scores: Scores, label: str, other: str, tasks: Sequence[str]) -> Claim | None:
    found = scores.difference(label, other, "named", tasks, _MEASURE)
    if found is None:
        return None
    holds = True if found.low > 0 else False if found.high < 0 else None
    return Claim(f"{label} is better than {other} on all tasks together", holds, _in_words(found))


def _keeps(scores: Scores, label: str, tasks: Sequence[str]) -> Claim | None:
    means = [scores.over(model, "bare", tasks, _MEASURE) for model in (label, ORACLE, "base")]
    known = [each for each in means if each is not None]
    if len(known) < len(means):
        return None
    text = (
        f"without any task name in the prompt, {label} keeps {KEPT_GAIN:.0%} of what the right "
        "expert gains over base"
    )
    _, oracle, base = known
    if (oracle - base).low <= 0:
        return Claim(
            text, None, f"the right expert gains nothing certain there: {_in_words(oracle - base)}"
        )
    share = share_of_gain(*known)
    holds = True if share.low >= KEPT_GAIN else False if share.high < KEPT_GAIN else None
    return Claim(
        text,
        holds,
        f"it keeps {share.value:.1%} (95 % interval {share.low:.1%} to {share.high:.1%})",
    )


def _in_words(found: Estimate) -> str:
    return f"difference {found.value:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f})"
