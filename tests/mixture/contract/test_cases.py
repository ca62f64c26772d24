"""The few cases of a default run leave out no setting and no pair of settings."""

from collections.abc import Iterator
from dataclasses import astuple
from itertools import combinations, product

import pytest
from cases import ACTIVATIONS, CONTEXTS, FEW, GENERATING_FEW, MIXING, SHAPES, Case
from pydantic import ValidationError

SCOPES = ["layer", "block", "model"]


def every_case(contexts: list[str]) -> Iterator[Case]:
    """Yield every combination of settings that a gate may have."""
    for choice in product(SHAPES, contexts, ACTIVATIONS, MIXING, SCOPES, [False, True]):
        case = Case(*choice)
        try:
            _ = case.config
        except ValidationError:
            continue
        yield case


def pairs(case: Case) -> set[tuple[tuple[int, object], ...]]:
    """Return every pair of settings of a case, each with its place."""
    return set(combinations(enumerate(astuple(case)), 2))


@pytest.mark.parametrize(
    ("few", "contexts"), [(GENERATING_FEW, CONTEXTS[:-1]), (FEW, CONTEXTS)], ids=["without", "with"]
)
def test_every_pair_of_settings_occurs(few: list[Case], contexts: list[str]) -> None:
    wanted = set().union(*map(pairs, every_case(contexts)))
    if "reference" in contexts:  # too few cases for its pairs with all others' pairs
        wanted = {pair for pair in wanted if (1, "reference") in pair}
    assert wanted <= set().union(*map(pairs, few))


@pytest.mark.parametrize("part", ["t5", "decoder-only, token by token"])
def test_every_setting_occurs_in_the_parts_that_claims_are_made_of(part: str) -> None:
    if part == "t5":
        chosen = [case for case in FEW if case.shape == "t5"]
    else:
        chosen = [case for case in FEW if case.shape != "t5" and case.config.per_token]
    found = set().union(*(enumerate(astuple(case)) for case in chosen))
    settings = zip(range(2, 6), [ACTIVATIONS, MIXING, SCOPES, [False, True]], strict=True)
    assert all((place, value) in found for place, values in settings for value in values)
