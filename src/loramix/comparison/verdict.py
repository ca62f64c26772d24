"""The verdict: the claims of a mixture, tested by the scores.

A mixture that is not told the task claims to be as good as the right expert, better than every
other single model of the same experts, and to need no task name in the prompt. All claims are about
`combined`, the mean of the scores against the reference, with paired intervals.
"""

from collections.abc import Collection, Sequence

from loramix.comparison.baselines import BASELINES
from loramix.comparison.models import mixture_row
from loramix.comparison.scores import Scores
from loramix.comparison.statistics import Estimate, share_of_gain
from loramix.experiment.labels import BASE, FINETUNE, ORACLE, expert_key
from loramix.experiment.recipe import Recipe
from loramix.report.content import Claim

KEPT_GAIN = 0.95  # of the oracle's gain over the base, without any task name in the prompt
_MEASURE = "combined"
_IN_WORDS = {
    BASE: "the base alone",
    FINETUNE: "full finetuning, one model for each task",
    **{name: baseline.in_words for name, baseline in BASELINES.items()},
}


def verdict(recipe: Recipe, scores: Scores) -> list[Claim]:
    """Return the claims of the first mixture that can be checked with the models and test sets of
    this recipe.
    """
    mixture = mixture_row(next(iter(recipe.mixtures())))
    if mixture not in scores.rows:
        return []
    tasks, with_expert = [task.name for task in recipe.tasks], list(recipe.own_experts)
    told = {ORACLE, *map(expert_key, recipe.expert_names)}  # they know the task, or one alone
    claims = [_as_good(scores, mixture, task) for task in with_expert]
    for other in scores.rows:
        if other != mixture and other not in told:
            claims.append(_better(scores, mixture, other, tasks))
    claims.append(_keeps(scores, mixture, with_expert, without=set(tasks) - set(with_expert)))
    return [claim for claim in claims if claim is not None]


def _as_good(scores: Scores, mixture: str, task: str) -> Claim | None:
    found = scores.difference(mixture, ORACLE, "named", [task], _MEASURE)
    if found is None:
        return None
    text = f"On {task}, {scores.labels[mixture]} is not worse than the right expert"
    return Claim(text, found.high >= 0, _told(found))


def _better(scores: Scores, mixture: str, other: str, tasks: Sequence[str]) -> Claim | None:
    found = scores.difference(mixture, other, "named", tasks, _MEASURE)
    if found is None:
        return None
    rival = _IN_WORDS.get(other, f"the mixture '{scores.labels[other]}'")
    text = f"Over all tasks, {scores.labels[mixture]} is better than {rival}"
    return Claim(text, _beyond(found, 0.0), _told(found))


def _keeps(
    scores: Scores, mixture: str, tasks: Sequence[str], *, without: Collection[str]
) -> Claim | None:
    """Return the claim about `tasks`; those `without` an expert have nothing to keep."""
    means = [scores.over(row, "bare", tasks, _MEASURE) for row in (mixture, ORACLE, BASE)]
    known = [mean for mean in means if mean is not None]
    if len(known) < len(means):
        return None
    text = (
        f"Without any task name in the prompt, {scores.labels[mixture]} keeps {KEPT_GAIN:.0%} of "
        "what the right expert gains over the base"
    )
    if without:
        text += f" (without {', '.join(sorted(without))}, which no expert is right for)"
    own, oracle, base = known
    gain = oracle - base
    if gain.low <= 0:
        return Claim(text, None, f"the right expert gains nothing certain there: {_told(gain)}")
    share = share_of_gain(own, oracle, base)
    evidence = f"it keeps {share.value:.1%} (95 % interval {share.low:.1%} to {share.high:.1%})"
    return Claim(text, _beyond(share, KEPT_GAIN, or_equal=True), evidence)


def _beyond(found: Estimate, bound: float, *, or_equal: bool = False) -> bool | None:
    """Return whether the whole interval lies above a bound, below it, or (None) on both sides."""
    if found.low > bound or (or_equal and found.low == bound):
        return True
    return False if found.high < bound else None


def _told(found: Estimate) -> str:
    value, low, high = map(_signed, (found.value, found.low, found.high))
    return f"difference of combined scores {value} (95 % interval {low} to {high})"


def _signed(value: float) -> str:
    """Return a number with four decimals, or as a power of ten where these would be zeros."""
    return f"{value:+.4f}" if value == 0 or abs(value) >= 0.0001 else f"{value:+.0e}"
