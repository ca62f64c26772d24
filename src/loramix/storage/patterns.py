"""Patterns in the settings of an adapter, which PEFT matches with the names of layers.

A few characters, such as `(a+)+$`, can keep Python's `re` busy for years, and nothing in the same
process can stop it. So patterns that come from files are first tried in a process of their own, on
the very names; what ends there, ends here.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from loramix.errors import ExpertError

_SECONDS = 10  # for all patterns of an adapter; honest ones take milliseconds
_PLAIN = re.compile(r"[\w.]*")  # such as a layer's name: these never search twice
_TRY = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        for name in names:
            re.fullmatch(pattern, name)
            re.match(rf"(.*\.)?({pattern})$", name)
            re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name)
    except re.error as error:
        sys.exit(f"{pattern!r} is no pattern: {error}")
"""


def check_patterns(expert: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise ExpertError if a pattern of an adapter's settings is none, or does not come to an end.

    names: of the layers that they will be matched with.
    """
    searching = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    if not searching:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRY],
            input=json.dumps([searching, list(names)]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExpertError(
            f"expert '{expert}': its adapter_config.json has patterns that do not come to an end: "
            f"{_short(searching)}; write the names of layers in their place"
        ) from error
    if done.returncode:
        said = (done.stderr.strip() or "a pattern cannot be read").splitlines()[-1]
        raise ExpertError(f"expert '{expert}': in its adapter_config.json, {said[:300]}")


def _short(patterns: Sequence[str]) -> str:
    text = ", ".join(map(repr, patterns))
    return text if len(text) <= 200 else f"{text[:197]}..."
