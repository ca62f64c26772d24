"""What a step takes of a machine: `lora=1gpu`, `gate=4cpu,1gpu`, `finetune=2cpu,24gb`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from loramix.errors import StageError, did_you_mean

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]+)")
_EXAMPLE = "write STAGE=AMOUNT,…, such as lora=1gpu or gate=4cpu,1gpu"


@dataclass(frozen=True)
class Resources:
    """What one step takes: processors, which are its threads, accelerators and GB of memory.

    gpu: less than one for steps that share an accelerator; None: one where the cluster has any.
    """

    cpu: int = 1
    gpu: float | None = None
    gb: float = 0.0

    def __str__(self) -> str:
        amounts = {"CPU": self.cpu, "GPU": self.gpu or 0, "GB of memory": self.gb}
        return ", ".join(f"{amount:g} {unit}" for unit, amount in amounts.items() if amount)


UNITS = tuple(field.name for field in fields(Resources))


def read_resources(texts: Sequence[str], stages: Sequence[str]) -> dict[str, Resources]:
    """Return what a step of each stage takes, of those that the texts name.

    Raises StageError that lists every problem.
    """
    found: dict[str, Resources] = {}
    problems: list[str] = []
    for text in texts:
        stage, separator, amounts = text.partition("=")
        if not separator:
            problems.append(f"'{text}' names no stage; {_EXAMPLE}")
        elif stage not in stages:
            problems.append(
                f"there is no stage '{stage}'{did_you_mean(stage, stages)}; the stages are "
                f"{', '.join(stages)}"
            )
        elif stage in found:
            problems.append(f"'{stage}' is given twice; give all that it takes in one text")
        else:
            wrong = list(_problems(amounts))
            problems += [f"{text}: {problem}" for problem in wrong]
            if not wrong:
                found[stage] = _resources(dict(_amounts(amounts)))
    if problems:
        raise StageError("\n".join(f"--step-resources: {problem}" for problem in problems))
    return found


def _amounts(text: str) -> Iterator[tuple[str, float]]:
    for part in text.split(","):
        amount = _AMOUNT.fullmatch(part.strip().lower())
        if amount is not None:
            yield amount[2], float(amount[1])


def _problems(text: str) -> Iterator[str]:
    """Yield what is wrong with the amounts of a stage."""
    units = [unit for unit, _ in _amounts(text)]
    if len(units) < len(text.split(",")) or len(set(units)) < len(units):
        yield f"'{text}' is not one amount for each unit; {_EXAMPLE}"
        return
    for unit, amount in _amounts(text):
        if unit not in UNITS:
            yield (
                f"there is no unit '{unit}'{did_you_mean(unit, UNITS)}; the units are "
                f"{', '.join(UNITS)}"
            )
        elif unit == "cpu" and (amount < 1 or amount % 1):
            yield f"a step takes whole processors, one or more, and not {amount:g}"
        elif unit == "gpu" and amount > 1 and amount % 1:
            yield f"a step takes a part of one accelerator or whole ones, and not {amount:g}"
        elif unit == "gb" and not amount:
            yield "a step takes some memory"


def _resources(amounts: Mapping[str, float]) -> Resources:
    return Resources(
        cpu=int(amounts.get("cpu", 1)), gpu=amounts.get("gpu"), gb=amounts.get("gb", 0.0)
    )
