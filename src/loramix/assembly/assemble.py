"""The work of `loramix mix`, `add` and `remove`: mixtures in folders, made of adapters in folders.

my-mixture/               a mixture, see `loramix.storage.format`, and beside its files
  mix.json                what it was made from, so that the same command finds it done
  verdict.json            see `loramix.assembly.verdict`
  verdict.html            the same as a page
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from loramix.assembly.checks import check_bases, check_distinct, check_room, common_base
from loramix.assembly.examples import Examples
from loramix.assembly.fit import HELD_OUT, Fit, fit, prompts_of, read_all
from loramix.assembly.verdict import ExpertVerdict, judge, warnings
from loramix.bases.devices import accelerator
from loramix.bases.loading import load_base
from loramix.config import PLACEHOLDER, GateConfig, Pooling, Prompting, gates_from_prompts
from loramix.errors import CheckpointError, DataError, OutputError
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import add_expert, remembered_weights
from loramix.report.verdict import VerdictPage, VerdictRow, verdict_page
from loramix.storage.card import METRICS, write_card
from loramix.storage.experts import Expert, load_expert
from loramix.storage.files import check_replaceable, sha256, write_text
from loramix.storage.locks import writing
from loramix.storage.manifest import CONFIG

log = logging.getLogger("loramix")
MADE, VERDICT, PAGE = "mix.json", "verdict.json", "verdict.html"


@dataclass(frozen=True)
class Order:
    """What a mixture is to be made from.

    base: None: the one that the adapters name. experts: folder or Hub id by name. examples: by
    expert. chat: whether prompts go through the chat template. first_pass: whether the gates decide
    together, from a pass of the base; None: where there are examples. pooling: how they read a
    prompt; None: by attention where they decide together and there are examples. Both as in
    `GateConfig`. training: as in `fit`.
    """

    experts: Mapping[str, str]
    examples: Mapping[str, Examples] = field(default_factory=dict)
    base: str | None = None
    lossy: Sequence[str] = ()
    dtype: str = "float32"
    chat: bool = False
    first_pass: bool | None = None
    pooling: Pooling | None = None
    training: bool = False
    seed: int = 0

    @property
    def gates(self) -> GateConfig:
        """The gates: unless told otherwise, those that follow requests best by what is known."""
        told = {"first_pass": self.first_pass, "pooling": self.pooling}
        chosen = {name: value for name, value in told.items() if value is not None}
        return GateConfig.model_validate(gates_from_prompts(chosen) if self.examples else chosen)


@dataclass(frozen=True)
class Done:
    """A mixture in its folder, and what is to be said of it."""

    folder: Path
    verdicts: Sequence[ExpertVerdict]
    warnings: Sequence[str]
    facts: Mapping[str, str]


def mix(order: Order, out: Path, *, overwrite: bool = False, wait: bool = False) -> Done:
    """Write the mixture that is ordered to folder `out`, with a verdict on it.

    A finished one is not made again; a killed training goes on from its last checkpoint.
    wait: for another process that writes to `out`; else it raises BusyError.
    Raises LoramixError before any work for an order that cannot be carried out, and OutputError if
    `out` holds anything else.
    """
    with writing(out, wait=wait):
        return _mix(order, out, overwrite=overwrite)


def _mix(order: Order, out: Path, *, overwrite: bool) -> Done:
    _check_pooling(order)
    examples = read_all(list(order.experts), order.examples)
    experts = [load_expert(name, each, lossy=order.lossy) for name, each in order.experts.items()]
    check_distinct(experts)
    base_name = order.base or common_base(experts)
    fingerprint = _fingerprint(order, base_name, experts)
    check_replaceable(out, CONFIG)
    if (out / CONFIG).is_file() and not overwrite:
        return _made_before(out, fingerprint, examples, order.dtype)
    check_room(out, experts)
    check_bases(experts, base_name)
    mixture = _mixture(order, base_name, experts)
    scratch = out.parent / f".{out.name}.{fingerprint[:8]}"  # of a training, until it is done
    fitted = fit(mixture, examples, training=order.training, seed=order.seed, folder=scratch)
    mixture.eval()
    facts = _facts(mixture, fitted)
    _save(mixture, out, {"fingerprint": fingerprint, "facts": facts})
    for rest in out.parent.glob(f".{escape(out.name)}.{'[0-9a-f]' * 8}"):  # of other orders too
        shutil.rmtree(rest, ignore_errors=True)
    return _judged(mixture, out, fitted.held_out, facts)


def add(
    folder: Path,
    name: str,
    source: str,
    examples: Examples,
    *,
    lossy: Sequence[str] = (),
    dtype: str = "float32",
    wait: bool = False,
) -> Done:
    """Add an expert to the mixture in `folder`, which gets prompts like its examples at once.

    Nothing is trained, and of the others' prompts only what the mixture remembers is needed.
    wait: as for `mix`.
    """
    with writing(folder, wait=wait):
        return _add(folder, name, source, examples, lossy=lossy, dtype=dtype)


def _add(
    folder: Path,
    name: str,
    source: str,
    examples: Examples,
    *,
    lossy: Sequence[str],
    dtype: str,
) -> Done:
    mixture = MixtureModel.from_pretrained(folder, dtype=dtype).to(accelerator())
    check_distinct([*mixture.experts, load_expert(name, source, lossy=lossy)])
    before = remembered_weights(mixture)
    learned, held_out = examples.divided(HELD_OUT)
    add_expert(mixture, name, source, prompts_of(mixture, learned), lossy=lossy)
    after = remembered_weights(mixture)
    _remember_template(mixture, examples)
    lost = max(before[other] - after[other] for other in before)
    facts = {
        "added": f"'{name}', from {len(learned.pairs)} prompts",
        "the others": f"lose at most {max(lost, 0.0):.1%} of their weight on their own prompts",
    }
    _save(mixture, folder, _changed(folder, mixture, f"added '{name}'"))
    return _judged(mixture, folder, {name: held_out}, facts)


def remove(folder: Path, name: str, *, dtype: str = "float32", wait: bool = False) -> Done:
    """Take an expert out of the mixture in `folder`; the others keep their proportions.

    wait: as for `mix`.
    """
    with writing(folder, wait=wait):
        mixture = MixtureModel.from_pretrained(folder, dtype=dtype)
        mixture.remove_expert(name)
        _save(mixture, folder, _changed(folder, mixture, f"removed '{name}'"))
        for file in (VERDICT, PAGE, METRICS):  # on the mixture with it
            (folder / file).unlink(missing_ok=True)
        write_card(folder)
    return Done(folder, (), (), {"experts": ", ".join(mixture.expert_names)})


def read_done(folder: Path) -> Done:
    """Return what an earlier command said of the mixture in `folder`."""
    try:
        held: Any = json.loads((folder / VERDICT).read_bytes())
        verdicts = [ExpertVerdict.from_dict(each) for each in held["experts"]]
        return Done(folder, verdicts, held["warnings"], held["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / VERDICT} is damaged; delete it, and the same command judges again"
        ) from error


def _mixture(order: Order, base_name: str, experts: Sequence[Expert]) -> MixtureModel:
    base = load_base(base_name, dtype=order.dtype)
    base.model.to(accelerator())
    mixture = MixtureModel(
        base.model,
        experts,
        order.gates,
        base_name=base.name,
        revision=base.revision,
        prompting=Prompting(chat=order.chat),
    )
    for each in order.examples.values():
        _remember_template(mixture, each)
    return mixture


def _check_pooling(order: Order) -> None:
    if order.pooling == "attention" and not order.examples:
        raise DataError(
            "pooling by attention learns from examples what asks for an expert, and there are "
            "none: give --examples of every expert, or leave out --pooling"
        )


def _remember_template(mixture: MixtureModel, examples: Examples) -> None:
    """Keep the prompt template of an expert's examples, so that inputs alone can be asked."""
    template = examples.task.prompt
    if template != PLACEHOLDER:
        templates = {**mixture.prompting.templates, examples.expert: template}
        mixture.prompting = mixture.prompting.model_copy(update={"templates": templates})


def _save(mixture: MixtureModel, folder: Path, made: Mapping[str, object]) -> None:
    mixture.save_pretrained(folder)
    write_text(folder / MADE, json.dumps(made, indent=2))


def _judged(
    mixture: MixtureModel,
    folder: Path,
    held_out: Mapping[str, Examples],
    facts: Mapping[str, str],
) -> Done:
    """Write the verdict on a saved mixture: numbers, page and card."""
    verdicts = judge(mixture, held_out)
    done = Done(folder, verdicts, warnings(verdicts), facts)
    rows = [_row(verdict) for verdict in verdicts]
    page = VerdictPage(folder.name, list(facts.items()), mixture.expert_names, rows, done.warnings)
    write_text(folder / PAGE, verdict_page(page))
    write_text(folder / METRICS, json.dumps(_metrics(verdicts), indent=2, ensure_ascii=False))
    write_card(folder)
    held = {
        "facts": facts,
        "warnings": done.warnings,
        "experts": [asdict(verdict) for verdict in verdicts],
    }
    write_text(folder / VERDICT, json.dumps(held, indent=2, ensure_ascii=False))
    return done


def _row(verdict: ExpertVerdict) -> VerdictRow:
    losses = verdict.losses
    shown: dict[str, float | None] = {}
    if losses is not None:
        shown = {
            "base": losses.base,
            "uniform weights": losses.uniform,
            "best other expert": losses.other,
            "own expert": losses.own,
            "mixture": losses.mixture,
        }
    share = losses.share_of_gain if losses else None
    return VerdictRow(verdict.expert, verdict.examples, dict(verdict.weights), shown, share)


def _metrics(verdicts: Sequence[ExpertVerdict]) -> dict[str, object]:
    """Return the verdict as the tables of a model card."""
    losses = [
        {
            "expert": each.expert,
            "base": f"{each.losses.base:.3f}",
            "uniform weights": f"{each.losses.uniform:.3f}",
            "own expert": f"{each.losses.own:.3f}",
            "mixture": f"{each.losses.mixture:.3f}",
        }
        for each in verdicts
        if each.losses is not None
    ]
    weights = [
        {"prompts of": each.expert, **{name: f"{w:z.3f}" for name, w in each.weights.items()}}
        for each in verdicts
    ]
    tables = {"Loss per token on held-out examples": losses} if losses else {}
    return {"scores": tables, "mean_weights": weights}


def _facts(mixture: MixtureModel, fitted: Fit) -> dict[str, str]:
    routed = {
        "nothing": "from the adapters alone, as there are no examples",
        "prompts": "from prompts, without training: an expert gets the prompts like its own",
        "answers": "from prompts and answers: as from prompts, then trained",
    }
    facts = {
        "base": mixture.base_name,
        "experts": ", ".join(mixture.expert_names),
        "routing": routed[fitted.depth],
        "gates": _decision(mixture.gate_config),
    }
    if fitted.refinement is not None:
        changes = "made held-out examples better" if fitted.refinement.kept else "made none better"
        kept = "its gates are kept" if fitted.refinement.kept else "the prototypes stay"
        facts["training"] = f"{changes}: {kept}"
    return facts


def _decision(gate: GateConfig) -> str:
    if gate.first_pass:
        decision = "they decide together, from a first pass of the base over each prompt"
    else:
        decision = f"each decides for its own {gate.scope}"
    if gate.pooling == "attention":
        decision += ", by what asks for something in the prompt"
    return decision


def _fingerprint(order: Order, base: str, experts: Sequence[Expert]) -> str:
    """Return a digest of all that a mixture is made from."""
    pooling = order.gates.pooling
    settings = {
        "base": base,
        "experts": [
            (each.name, sha256(each.config_file), sha256(each.weights_file), each.lossy)
            for each in experts
        ],
        "examples": {
            name: [each.task.model_dump(mode="json"), each.pairs]
            for name, each in order.examples.items()
        },
        "chat": order.chat,
        "first_pass": order.gates.first_pass,
        **({} if pooling == "mean" else {"pooling": pooling}),  # as digests always were
        "training": order.training,
        "seed": order.seed,
    }
    return sha256(json.dumps(settings, sort_keys=True))


def _made(folder: Path) -> dict[str, Any]:
    file = folder / MADE
    try:
        held = json.loads(file.read_bytes()) if file.is_file() else {}
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise CheckpointError(f"{file} is damaged; make the mixture anew, with --overwrite")
    return held


def _changed(folder: Path, mixture: MixtureModel, change: str) -> dict[str, object]:
    """Return what is to be known of a mixture after a change: no command makes it in one go."""
    made = _made(folder)
    facts = {**made.get("facts", {}), "experts": ", ".join(mixture.expert_names)}
    return {"fingerprint": "", "facts": facts, "changes": [*made.get("changes", []), change]}


def _made_before(out: Path, fingerprint: str, examples: Mapping[str, Examples], dtype: str) -> Done:
    """Return what was said of this mixture when it was made, or say it if that was not reached.

    Raises OutputError if the folder holds another mixture.
    """
    made = _made(out)
    if made.get("fingerprint") != fingerprint:
        raise OutputError(
            f"{out} holds another mixture; choose another folder, or replace it with --overwrite"
        )
    if (out / VERDICT).is_file():
        log.info("%s: already done", out)
        return read_done(out)
    log.info("%s: made, its verdict is missing", out)
    mixture = MixtureModel.from_pretrained(out, dtype=dtype).to(accelerator())
    held_out = {name: each.divided(HELD_OUT)[1] for name, each in examples.items()}
    return _judged(mixture, out, held_out, made["facts"])
