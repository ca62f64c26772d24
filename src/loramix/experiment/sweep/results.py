"""What a sweep has found: sweep.csv and sweep.html, ordered by validation loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from loramix.experiment.labels import MIXTURE, expert_key, label
from loramix.experiment.run import GATE_CHECK, Run, gates_stayed, read_losses
from loramix.experiment.stages.evaluate import tables
from loramix.experiment.sweep.settings import Setting
from loramix.report.content import SweepReport, SweepRow
from loramix.report.sweep import sweep_page
from loramix.storage.files import read_csv, write_csv, write_text

RESULTS, PAGE = "sweep.csv", "sweep.html"
RUN, VALIDATION = "run", "validation loss"
TRAINING = ("finetune", "lora", "gate")  # stages that leave validation losses
# With another of these, losses are of other samples or tokens, and cannot be set side by side.
_MEASURED = ("base.name", "base.revision", "base.chat", "tasks", "samples", "seed")


@dataclass(frozen=True)
class _Found:
    """What one run of a sweep has found: its validation loss, and the columns beside it."""

    loss: float | None
    stayed: bool  # whether its gates are where they started, as training has not helped them
    validation: Mapping[str, float]  # of every training
    test: Mapping[str, float]  # scores of the mixture


def write_results(
    settings: Sequence[Setting], runs: Sequence[Run], root: Path, stage: str | None
) -> None:
    """Write the table and the page of a sweep to `root`.

    Settings come by their validation loss, the lowest first, where losses can be compared: test
    scores stand beside it and decide nothing.
    """
    found = {setting.name: _found(run, stage) for setting, run in zip(settings, runs, strict=True)}
    keys = list(settings[0].values)
    compared = not [key for key in keys if _changes_measure(key)]
    ordered = sorted(settings, key=lambda each: _rank(found[each.name])) if compared else settings
    validation = _columns([each.validation for each in found.values()])
    test = _columns([each.test for each in found.values()])
    rows = []
    for setting in ordered:
        one = found[setting.name]
        losses = [one.loss, *(one.validation.get(column) for column in validation)]
        scores = [one.test.get(column) for column in test]
        rows.append(SweepRow(setting.name, list(setting.values.values()), losses, scores))
    header = [RUN, *keys, VALIDATION, *validation, *test]
    write_csv(
        root / RESULTS, header, [[row.run, *row.values, *row.losses, *row.scores] for row in rows]
    )
    name = settings[0].recipe.name
    report = SweepReport(
        title=f"loramix: sweep of {name}",
        summary=_summary(ordered, found, stage, compared=compared),
        keys=keys,
        losses=[VALIDATION, *validation],
        scores=test,
        rows=rows,
        compared=compared,
        reports=stage is None,
        recipe=settings[0].recipe.to_yaml(),
    )
    write_text(root / PAGE, sweep_page(report))


def _found(run: Run, stage: str | None) -> _Found:
    last = stage or "gate"
    losses = {
        title: round(min(measured), 6)
        for title, file in run.loss_files().items()
        if file.is_file() and (measured := _validation(file))
    }
    if last == "gate":
        loss, stayed = _of_gates(run)
        return _Found(loss, stayed, losses, _test_scores(run) if stage is None else {})
    experts = [label(expert_key(task.name)) for task in run.recipe.trained]
    of_stage = [loss for title, loss in losses.items() if (title in experts) == (last == "lora")]
    return _Found(round(fmean(of_stage), 6) if of_stage else None, False, losses, {})


def _validation(file: Path) -> list[float]:
    measured = [row.validation for row in read_losses(file)]
    return [loss for loss in measured if loss is not None and math.isfinite(loss)]


def _of_gates(run: Run) -> tuple[float | None, bool]:
    """Return the mean validation loss, over tasks and ways of asking, of the gates that the run
    has kept, and whether these are the ones that it started with.
    """
    check = run.folder("gate") / GATE_CHECK
    stayed = gates_stayed(check)
    mean = fmean(float(row["start" if stayed else "trained"]) for row in read_csv(check))
    return round(mean, 6) if math.isfinite(mean) else None, stayed


def _test_scores(run: Run) -> dict[str, float]:
    """Return the scores of the mixture on test samples, by table and column."""
    scores: dict[str, float] = {}
    for table in tables(run.recipe):
        row = next(
            each for each in read_csv(run.root / table.file) if each["model"] == label(MIXTURE)
        )
        for column, text in row.items():
            value = _number(text)
            if value is not None:
                scores[f"{table.title}: {column}"] = value
    return scores


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # what measured it, or the model's name


def _columns(found: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the columns of all runs, each once."""
    return list(dict.fromkeys(column for each in found for column in each))


def _changes_measure(key: str) -> bool:
    return key.endswith(".validation_samples") or any(
        key == each or key.startswith(f"{each}.") for each in _MEASURED
    )


def _rank(found: _Found) -> float:
    return math.inf if found.loss is None else found.loss


def _summary(
    ordered: Sequence[Setting],
    found: Mapping[str, _Found],
    stage: str | None,
    *,
    compared: bool,
) -> list[str]:
    """Return the page's sentences: what is lowest, what was measured, and on what."""
    of = {"finetune": "fully finetuned models", "lora": "adapters"}.get(
        stage or "gate", "mixture, with the gates that its run has kept"
    )
    told = [
        f"The loss is that of the {of}: the mean over tasks, per target token of validation "
        "samples."
    ]
    if not compared:
        return [
            "These settings change the samples or tokens that losses are measured on, so that no "
            "one is lower than another: they stand as they were given.",
            *told,
        ]
    best = found[ordered[0].name].loss
    if best is not None:
        winners = [each for each in ordered if found[each.name].loss == best]
        values = ", ".join(f"{key} {value}" for key, value in winners[0].values.items())
        which = values if len(winners) == 1 else f"the same with {len(winners)} settings"
        told.insert(0, f"Lowest validation loss: {which} ({best:.4f}).")
    stayed = sum(each.stayed for each in found.values())
    if stayed:
        told.append(
            f"In {stayed} of {len(found)} runs, training has not helped the gates: they stay where "
            "they started, and so does their loss."
        )
    if stage is None:
        told.append(
            "Test scores are those of the mixture; they are shown, and have chosen nothing."
        )
    return [*told, "One seed each, without intervals: small differences may be chance."]
