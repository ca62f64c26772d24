"""Orders that cannot be carried out, found before any work."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from loramix.errors import ExpertError, OutputError
from loramix.experiment.given import bare_base, on_bare
from loramix.experiment.recipe import BaseSpec
from loramix.storage.experts import Expert
from loramix.storage.files import sha256

log = logging.getLogger("loramix")
_SPARE = 1.5  # times the adapters: their copies, the gates, what these remember


def check_distinct(experts: Sequence[Expert]) -> None:
    """Raise ExpertError if two experts are the same adapter."""
    seen: dict[str, Expert] = {}
    for expert in experts:
        other = seen.setdefault(sha256(expert.weights_file), expert)
        if other is not expert:
            raise ExpertError(
                f"experts '{other.name}' and '{expert.name}' are the same adapter: "
                f"{other.source} and {expert.source} hold the same weights; leave one out"
            )


def common_base(experts: Sequence[Expert]) -> str:
    """Return the base that all adapters name; ExpertError if they name none or several."""
    named = {expert.name: expert.settings.base_model_name_or_path for expert in experts}
    found = set(named.values())
    if len(found) == 1 and (base := found.pop()):
        return str(base)
    listed = ", ".join(f"{name}: {base or 'none'}" for name, base in named.items())
    raise ExpertError(f"the adapters do not name one base ({listed}); say which, with --base")


def check_bases(experts: Sequence[Expert], base: str) -> None:
    """Raise ExpertError if the base lacks a layer of an expert or has it in another shape, without
    loading its weights; warn of adapters that name another base.
    """
    bare = bare_base(BaseSpec(name=base))
    for expert in experts:
        try:
            if bare is not None:
                on_bare(expert, bare)
        except ExpertError as error:
            raise ExpertError(f"{error}; the base here is '{base}'") from error
        named = expert.settings.base_model_name_or_path
        if named and Path(named).name != Path(base).name:
            log.warning(
                "warning: expert '%s' was trained on '%s', and the base here is '%s'; its numbers "
                "are right only if both are the same model",
                expert.name,
                named,
                base,
            )


def check_room(out: Path, experts: Sequence[Expert]) -> None:
    """Raise OutputError if the disk has too little room for the mixture."""
    needed = _SPARE * sum(expert.weights_file.stat().st_size for expert in experts) + 2**20
    place = next(each for each in out.absolute().parents if each.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{out} needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left; "
            "make room or choose another folder"
        )
