"""Errors whose texts name what was found, what was expected and the remedy."""

import difflib
from collections.abc import Iterable


class LoramixError(Exception):
    """Base of the errors that loramix raises on purpose; their texts are meant for users."""


class RecipeError(LoramixError, ValueError):
    """A recipe that cannot be run; the message lists every problem found."""


class HubError(LoramixError, OSError):
    """A name that stands for no folder, on disk or on the Hub."""


class BaseModelError(LoramixError, ValueError):
    """A base model or encoder that cannot be found, fetched or loaded."""


class DataError(LoramixError, ValueError):
    """A data source that cannot be read, or holds too little usable data."""


class ExpertError(LoramixError, ValueError):
    """An adapter that cannot be an expert of this mixture."""


class MixtureError(LoramixError, ValueError):
    """A request that a mixture cannot answer exactly."""


class CheckpointError(LoramixError, ValueError):
    """A mixture on disk that is incomplete, damaged or from a newer version."""


class OutputError(LoramixError, FileExistsError):
    """A path to write to that holds other files."""


class BusyError(LoramixError, BlockingIOError):
    """A folder that another process is writing to."""


class StageError(LoramixError, RuntimeError):
    """A stage that cannot start or go on."""


class LeakError(StageError):
    """A model that has learned from samples of its test."""


class MissingExtraError(LoramixError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; get it with: pip install 'loramix[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> "tuple[type[MissingExtraError], tuple[str, str]]":
        return MissingExtraError, (
            self.package,
            self.extra,
        )  # or no process could hand it to another one


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` with the option nearest to `word`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
