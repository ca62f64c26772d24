"""Other wordings of an expert's prompts, so that gates read what is asked and not how.

The prompts of one expert mostly share a text around what differs, a template. Gates that have seen
nothing else know the template, and do not know the same request without it.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

# How people ask when they say nothing about the task.
NEUTRAL = (
    "{}",
    "Please help me with this: {}",
    "What would you make of {}?",
    "Input: {}\nOutput:",
    "How would you deal with this? {}",
    "Here is the next one: {}",
    "{}\nWhat is the answer?",
    "Can you do this for me?\n\n{}",
)
Template = tuple[str, str]  # what stands before an input, and what after it

# More such prompts of an expert make its request count more, and its own inputs less.
CROSSED = 24
_FEWEST = 4  # prompts, from which what they share is a template and no chance


def neutral(text: str, turn: int) -> str:
    """Return a text in one of the neutral wordings, which take turns."""
    return NEUTRAL[turn % len(NEUTRAL)].format(text)


def other_wordings(prompts: Sequence[str], inputs: Sequence[str] | None = None) -> list[str]:
    """Return the inputs of prompts by themselves, and each in a neutral wording.

    inputs: of the prompts, where they are known; else what differs between the prompts. There are
        none if the prompts share nothing, or are too few to tell.
    """
    bare = list(inputs) if inputs is not None else without_template(prompts)
    worded = [neutral(text, index) for index, text in enumerate(bare)]
    return list(dict.fromkeys([*bare, *worded]))


def crossed(
    templates: Mapping[str, Sequence[Template]],
    inputs: Mapping[str, Sequence[str]],
    *,
    each: int = CROSSED,
) -> dict[str, list[str]]:
    """Return the prompts of every expert about the inputs of the others: what is asked counts, and
    not what about.

    templates: of every expert. inputs: of every expert's prompts.
    each: the prompts of one expert; fewer where the others have too few inputs. There are none for
        an expert without a template.
    """
    found: dict[str, list[str]] = {}
    names = list(inputs)
    for place, name in enumerate(names):
        others = [*names[place + 1 :], *names[:place]]
        # one input of every other expert in turn, so that a few come from all of them
        rows = zip_longest(*(inputs[other] for other in others))
        foreign = [text for row in rows for text in row if text is not None]
        own, found[name] = templates.get(name, ()), []
        for turn in range(min(each, len(foreign)) if own else 0):
            before, after = own[turn % len(own)]
            found[name].append(before + foreign[turn] + after)
    return found


def without_template(prompts: Sequence[str]) -> list[str]:
    """Return the prompts without the words that all of them begin with, and those that all end
    with; nothing if there are no such words.
    """
    found = template_of(prompts)
    if found is None:
        return []
    before, after = map(len, found)
    return [prompt[before : len(prompt) - after].strip() for prompt in prompts]


def template_of(prompts: Sequence[str]) -> Template | None:
    """Return the words that all prompts begin with, and those that all end with; None if there are
    no such words, or if nothing is left between them in some prompt.
    """
    if len(set(prompts)) < _FEWEST:
        return None
    start = _shared_start(prompts)
    rests = [prompt[len(start) :] for prompt in prompts]
    end = _shared_start([rest[::-1] for rest in rests])[::-1]
    between = [rest[: len(rest) - len(end)].strip() for rest in rests]
    return (start, end) if (start.strip() or end.strip()) and all(between) else None


def _shared_start(texts: Sequence[str]) -> str:
    """Return the whole words that all texts begin with: inputs may begin with the same letters by
    chance.
    """
    first, last = min(texts), max(texts)  # between these, all others have the same beginning
    pairs = zip(first, last, strict=False)
    length = next((place for place, (one, other) in enumerate(pairs) if one != other), len(first))
    return re.sub(r"\w*\Z", "", first[:length])
