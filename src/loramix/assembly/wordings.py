"""Other wordings of an expert's prompts, so that gates read what is asked and not how.

The prompts of one expert mostly share a text around what differs, a template. Gates that have seen
nothing else know the template, and do not know the same request without it.
"""

import re
from collections.abc import Sequence

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
_FEWEST = 4  # prompts, from which what they share is a template and no chance


def other_wordings(prompts: Sequence[str], inputs: Sequence[str] | None = None) -> list[str]:
    """Return the inputs of prompts by themselves, and each in a neutral wording.

    inputs: of the prompts, where they are known; else what differs between the prompts. There are
        none if the prompts share nothing, or are too few to tell.
    """
    bare = list(inputs) if inputs is not None else without_template(prompts)
    worded = [NEUTRAL[index % len(NEUTRAL)].format(text) for index, text in enumerate(bare)]
    return list(dict.fromkeys([*bare, *worded]))


def without_template(prompts: Sequence[str]) -> list[str]:
    """Return the prompts without the words that all of them begin with, and those that all end
    with; nothing if there are no such words.
    """
    if len(set(prompts)) < _FEWEST:
        return []
    start = _shared_start(prompts)
    rests = [prompt[len(start) :] for prompt in prompts]
    end = _shared_start([rest[::-1] for rest in rests])[::-1]
    found = [rest[: len(rest) - len(end)].strip() for rest in rests]
    return found if (start.strip() or end.strip()) and all(found) else []


def _shared_start(texts: Sequence[str]) -> str:
    """Return the whole words that all texts begin with: inputs may begin with the same letters by
    chance.
    """
    first, last = min(texts), max(texts)  # between these, all others have the same beginning
    pairs = zip(first, last, strict=False)
    length = next((place for place, (one, other) in enumerate(pairs) if one != other), len(first))
    return re.sub(r"\w*\Z", "", first[:length])
