"""The facts below a comparison's verdict: the base, the test samples, and what was left out."""

from collections.abc import Iterator, Sequence

from loramix.comparison.comparison import ComparedModel, Comparison
from loramix.comparison.scores import Scores
from loramix.metrics.measures import tokenizer

_TOKENIZED = {"Tokenizer": "words", "BLEU": "bleu", "chrF": "chrf"}  # facts, by measure


def facts(
    comparison: Comparison,
    models: Sequence[ComparedModel],
    scores: Scores,
    left_out: Sequence[str],
) -> list[tuple[str, str]]:
    """Return what was asked of which models, and what was left out, by title."""
    recipe, spec = comparison.recipe, comparison.recipe.comparison
    found = [
        ("Base model", f"{recipe.base.name}, {recipe.base.dtype}"),
        ("Test samples", "; ".join(_sizes(scores))),
        ("Seeds of the gates", ", ".join(map(str, spec.seeds))),
    ]
    measures = {name for part in scores.parts for name in part.values}
    found += [(name, tokenizer(key)) for name, key in _TOKENIZED.items() if key in measures]
    slow = ", ".join(model.label for model in models if not model.cached)
    if slow and spec.uncached_samples is not None:
        fact = (
            f"{slow}, which generates without a cache, answered the first {spec.uncached_samples} "
            "of the first set; differences are paired on those"
        )
        found.append(("Fewer samples", fact))
    if recipe.experts:
        fact = (
            f"{', '.join(recipe.experts)}: given adapters, and nobody can tell whether they have "
            "learned from the test samples"
        )
        found.append(("Not checked", fact))
    return [*found, *(("Left out", reason) for reason in left_out)]


def _sizes(scores: Scores) -> Iterator[str]:
    """Yield how many samples of each task every test set has; in short where tasks are alike."""
    most: dict[str, dict[str, int]] = {}
    for part in scores.parts:
        of_set = most.setdefault(part.test_set, {})
        of_set[part.task] = max(of_set.get(part.task, 0), len(part.ids))
    for test_set, counts in most.items():
        if len(counts) > 1 and len(set(counts.values())) == 1:
            (count,) = set(counts.values())
            yield f"{test_set}: {count} of each of {len(counts)} tasks"
        else:
            yield f"{test_set}: {', '.join(f'{n} {task}' for task, n in counts.items())}"
