"""The share of each adapter's gain that a mixture keeps, told nothing, by what its gates know.

    python benchmarks/adapters.py TASKS --out results/adapters     (once)
    python benchmarks/own_adapters.py results/adapters [--rows "uniform weights" … | --ablate]

Share of gain = (loss of base - loss of mixture) / (loss of base - loss of own expert), on withheld
samples of each task, for the prompts of the task (named), their inputs alone (bare) and the prompts
in other words (paraphrased). In the last columns, a task's request is made about the inputs of
others (crossed), and the weight of the expert that is asked for counts. All is kept in losses.json
beside the adapters, so a stopped run goes on where it was, and rows measured before cost nothing
(`--again` measures them anew, after a change of loramix). The table is printed as markdown, with
one line for every task in own_adapters.csv. All rows take an hour and a half on one core, most of
it forward passes. `--ablate` measures gates of other settings, which know the same 16 prompts.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from loramix import GateConfig, MixtureModel
from loramix.assembly.examples import read_examples
from loramix.assembly.fit import all_prompts, fit, prompts_of
from loramix.data.tokens.batches import IGNORED, Collator, Encoded, length_order
from loramix.data.wordings import crossed, template_of
from loramix.mixture.arrow import from_adapters as from_directions
from loramix.mixture.prototypes import add_expert, from_examples

BASE = "smollm2-135m"
FORMS = ("named", "bare", "paraphrased")
ASKED = "crossed"  # of which there are weights and no losses
CROSSED_INPUTS = 2  # of every other expert
PROMPTS = 16
GROWN = "16 prompts, a ninth added"
BATCH = 8
EXPERTS = 8  # of the mixture; the ninth is added to it
ATTENDING = {"pooling": "attention", "scope": "block"}  # with a first pass, as by `loramix mix`


@dataclass(frozen=True)
class Bench:
    """The adapters of a folder, with their samples; the last adapter is there to be added."""

    folder: Path
    samples: int  # of each task, for testing
    cache: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def experts(self) -> list[str]:
        """The names of all adapters, in the order in which they were trained."""
        with (self.folder / "adapters.csv").open(newline="", encoding="utf-8") as file:
            return [row["expert"] for row in csv.DictReader(file)]

    def mixture(self, *, experts: int = EXPERTS, **gate: Any) -> MixtureModel:
        """Return a mixture of the first adapters, with uniform weights."""
        sources = {name: self.folder / name for name in self.experts[:experts]}
        return MixtureModel.from_experts(BASE, sources, gate=GateConfig(**gate)).eval()

    def rows_of(self, part: str, name: str) -> list[dict[str, object]]:
        """Return an adapter's samples of `examples` or `test`."""
        lines = (self.folder / part / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def prompts(self, count: int) -> dict[str, list[str]]:
        """Return prompts for the gates, for every expert of the mixture."""
        names = self.experts[:EXPERTS]
        return {
            name: [str(r["prompt"]) for r in self.rows_of("examples", name)[:count]]
            for name in names
        }

    def tests(self, tokenizer: PreTrainedTokenizerBase, name: str, form: str) -> list[Encoded]:
        """Return the withheld samples of a task, their prompts in the given form."""
        rows = self.rows_of("test", name)[: self.samples]
        return [
            Encoded(
                tokenizer(wording(row, form, index) + "\n").input_ids,
                [*tokenizer(str(row["target"])).input_ids, tokenizer.eos_token_id],
            )
            for index, row in enumerate(rows)
        ]

    def losses(
        self, row: str, name: str, form: str, measure: Callable[[], list[float]]
    ) -> list[float]:
        """Return the losses of one row's model on a task's samples, measured if not known."""
        key = f"{row}/{name}/{form}/{self.samples}"
        if key not in self.cache:
            self.cache[key] = measure()
            (self.folder / "losses.json").write_text(json.dumps(self.cache, indent=0))
        return self.cache[key]


def wording(row: Mapping[str, object], form: str, index: int) -> str:
    """Return a sample's prompt in one form; other wordings take turns."""
    if form == "paraphrased":
        others = row["paraphrases"]
        assert isinstance(others, list)
        return str(others[index % len(others)])
    return str(row["input" if form == "bare" else "prompt"])


@torch.no_grad()
def sample_losses(model: nn.Module, samples: Sequence[Encoded], collator: Collator) -> list[float]:
    """Return, for every sample, the mean loss of its target tokens."""
    losses = [0.0] * len(samples)
    order = length_order([len(sample.prompt) + len(sample.target) for sample in samples])
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = collator([samples[index] for index in chosen])
        labels_BT = batch["labels"][:, 1:]
        logits_BTV = model(**batch).logits[:, :-1].float()
        each_BT = nn.functional.cross_entropy(
            logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
        )
        mean_B = each_BT.sum(1) / (labels_BT != IGNORED).sum(1)
        for index, loss in zip(chosen, mean_B.tolist(), strict=True):
            losses[index] = loss
    return losses


def uniform(bench: Bench) -> MixtureModel:
    """Return the mixture as it is without any gates' knowledge."""
    return bench.mixture()


def arrow(bench: Bench) -> MixtureModel:
    """Return the mixture whose gates follow Arrow: one direction of each layer and adapter."""
    mixture = bench.mixture()
    mixture.widen(2 * EXPERTS)
    from_directions(mixture)
    return mixture


def nothing(bench: Bench, **gate: Any) -> MixtureModel:
    """Return the mixture whose gates know nothing but the adapters, as `loramix mix` makes it.

    gate: settings of `GateConfig`.
    """
    mixture = bench.mixture(**gate)
    fit(mixture, {})
    return mixture


def prompts(
    bench: Bench, *, foreign: bool = True, separated: bool = True, **gate: Any
) -> MixtureModel:
    """Return the mixture that knows 16 prompts of each expert, as `loramix mix` reads them.

    foreign: whether gates know requests about the inputs of other experts. separated: whether they
        are moved where nearest means confuse the prompts. gate: further settings of `GateConfig`.
    """
    mixture = bench.mixture(**gate)
    known = bench.prompts(PROMPTS).items()
    examples = {name: read_examples(name, texts) for name, texts in known}
    if foreign:
        from_examples(mixture, all_prompts(mixture, examples), separated=separated)
    else:
        own = {name: prompts_of(mixture, each) for name, each in examples.items()}
        from_examples(mixture, own, separated=separated)
    return mixture


def plain_means(bench: Bench) -> MixtureModel:
    """Return the mixture that knows the plain means of 16 prompts of each expert."""
    mixture = bench.mixture()
    from_examples(mixture, bench.prompts(PROMPTS), discount=False, separated=False)
    return mixture


def answers(bench: Bench) -> MixtureModel:
    """Return the mixture whose gates are fitted to all examples, with their answers."""
    mixture = bench.mixture()
    names = bench.experts[:EXPERTS]
    sources = {name: bench.folder / "examples" / f"{name}.jsonl" for name in names}
    done = fit(mixture, sources, training=True)
    print(done.refinement, file=sys.stderr)
    return mixture


def grown(bench: Bench) -> MixtureModel:
    """Return the mixture of prompts to which the last adapter is added, with its own prompts."""
    mixture = prompts(bench)
    newcomer = bench.experts[EXPERTS]
    texts = [str(row["prompt"]) for row in bench.rows_of("examples", newcomer)[:PROMPTS]]
    started = time.monotonic()
    own = prompts_of(mixture, read_examples(newcomer, texts))
    add_expert(mixture, newcomer, bench.folder / newcomer, own)
    print(f"adding took {time.monotonic() - started:.0f} s", file=sys.stderr)
    return mixture


ROWS: dict[str, Callable[[Bench], MixtureModel]] = {
    "uniform weights": uniform,
    "nothing but adapters: Arrow": arrow,
    "nothing but adapters": nothing,
    "nothing but adapters, a first pass": partial(nothing, first_pass=True),
    "16 prompts, plain means": plain_means,
    "16 prompts": prompts,
    "16 prompts, nearest means": partial(prompts, separated=False),
    "16 prompts, own inputs alone": partial(prompts, foreign=False),
    "16 prompts, gates that carry": partial(prompts, carry=True),
    "16 prompts, a first pass": partial(prompts, first_pass=True),
    "16 prompts, attention": partial(prompts, **ATTENDING),
    "16 prompts, attention and a first pass": partial(prompts, **ATTENDING, first_pass=True),
    "64 prompts and answers": answers,
    GROWN: grown,
}
SETTINGS: dict[str, dict[str, object]] = {
    "as they are": {},
    "one gate for each block": {"scope": "block"},
    "attention, one gate for each layer": {"pooling": "attention"},
    "one gate for the model": {"scope": "model"},
    "running means": {"context": "running"},
    "each token by itself": {"context": "token"},
    "top-2": {"activation": "top-k"},
    "top-1": {"activation": "top-1"},
    "evidence carried on": {"carry": True},
    "a first pass": {"first_pass": True},
}
ABLATIONS = {name: partial(prompts, **settings) for name, settings in SETTINGS.items()}


class Reference:
    """The losses of the base and of each task's own expert: what gains are measured with."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        # Built if a loss is not known.
        self.mixture = cache(partial(bench.mixture, experts=len(bench.experts)))

    def losses(self, name: str, form: str, *, own: bool) -> list[float]:
        """Return the losses of the base or of the task's own expert."""

        def measure() -> list[float]:
            mixture = self.mixture()
            with mixture.fixed({name: 1.0} if own else {}):
                return measured(self.bench, mixture, name, form)

        return self.bench.losses("own" if own else "base", name, form, measure)

    def share(self, name: str, form: str, losses: Sequence[float]) -> float:
        """Return the share of the own expert's gain over the base that these losses keep."""
        base, own = (mean(self.losses(name, form, own=each)) for each in (False, True))
        return (base - mean(losses)) / (base - own)


def measured(bench: Bench, mixture: MixtureModel, name: str, form: str) -> list[float]:
    """Return the losses of a mixture on a task's withheld samples."""
    samples = bench.tests(mixture.tokenizer, name, form)
    return sample_losses(mixture, samples, Collator(mixture.tokenizer, causal=True))


@torch.no_grad()
def asked_weights(bench: Bench, mixture: MixtureModel, name: str) -> list[float]:
    """Return the weight of an expert, the mean over layers, on its request about the withheld
    inputs of the others.
    """
    names = bench.experts[:EXPERTS]
    template = template_of([str(row["prompt"]) for row in bench.rows_of("examples", name)])
    assert template is not None
    inputs = {
        other: [str(row["input"]) for row in bench.rows_of("test", other)[:CROSSED_INPUTS]]
        for other in dict.fromkeys([name, *names])
    }
    count = CROSSED_INPUTS * (len(inputs) - 1)
    weights = []
    for prompt in crossed({name: [template]}, inputs, each=count)[name]:
        ids = mixture.tokenizer(prompt + "\n", return_tensors="pt").input_ids
        found = torch.stack(list(mixture.mean_weights(input_ids=ids).values()))
        weights.append(float(found[:, 0, mixture.expert_names.index(name)].mean()))
    return weights


def shares_of(bench: Bench, reference: Reference, row: str) -> Iterator[dict[str, object]]:
    """Yield the share of every task and prompt form for one row of the table."""
    prepared = cache(lambda: (ROWS | ABLATIONS)[row](bench).eval())
    for form in FORMS:
        for name in bench.experts[: EXPERTS + (row == GROWN)]:
            losses = bench.losses(
                row,
                name,
                form,
                lambda name=name, form=form: measured(bench, prepared(), name, form),
            )
            share = reference.share(name, form, losses)
            yield {"row": row, "expert": name, "form": form, "share": round(share, 4)}
    for name in bench.experts[: EXPERTS + (row == GROWN)]:
        weights = bench.losses(
            row, name, ASKED, lambda name=name: asked_weights(bench, prepared(), name)
        )
        yield {"row": row, "expert": name, "form": ASKED, "share": round(mean(weights), 4)}


def table(found: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield the lines of the markdown table: mean and worst task of every row and form."""
    yield "| gates | " + " | ".join(f"{form} | worst" for form in (*FORMS, ASKED)) + " |"
    yield "| --- |" + " ---: | ---: |" * (len(FORMS) + 1)
    for row in dict.fromkeys(str(each["row"]) for each in found):
        cells = []
        for form in (*FORMS, ASKED):
            shares = [float(str(e["share"])) for e in found if (e["row"], e["form"]) == (row, form)]
            cells.append(f"{mean(shares):.3f} | {min(shares):.3f}")
        yield f"| {row} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what benchmarks/adapters.py has written")
    parser.add_argument("--samples", type=int, default=24, help="withheld samples of each task")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--ablate", action="store_true", help="measure other settings instead")
    parser.add_argument("--again", action="store_true", help="measure these rows anew")
    options = parser.parse_args()
    if options.ablate:
        options.rows = list(ABLATIONS)
    bench = Bench(options.folder, options.samples)
    if (known := options.folder / "losses.json").exists():
        bench.cache.update(json.loads(known.read_text(encoding="utf-8")))
    if options.again:
        for key in [key for key in bench.cache if key.split("/")[0] in options.rows]:
            del bench.cache[key]
    reference, found = Reference(bench), []
    for row in options.rows:
        started = time.monotonic()
        found += shares_of(bench, reference, row)
        print(f"{row}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print("\n".join(table(found)))
    with (options.folder / "own_adapters.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
