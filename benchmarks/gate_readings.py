"""What gates could read instead, and how they could decide: the weight of the right expert.

    python benchmarks/gate_readings.py RESULTS [KEY=VALUE …]

RESULTS is a folder in which many_experts.py has trained adapters; KEY=VALUE as there. Contexts of
the prompts that gates start from, and of withheld samples in every test set, are read once while
the right expert acts in all layers, and once while the base acts alone, as in a first pass of its
own. Then gates are fitted to the first and asked for the second: to the mean over the tokens of a
prompt, to its last token, or to both; each by itself, or all together as one decision for the whole
model. No pass of the mixture itself is made: what wrong decisions do to deeper layers shows in
many_experts.py alone. Half an hour on one core for twenty experts.
"""

import argparse
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loramix import MixtureModel
from loramix.comparison.testsets import asked_task, questions
from loramix.config import GateConfig
from loramix.experiment.answers import encode_all
from loramix.experiment.reading import load_recipe
from loramix.experiment.run import Run
from loramix.experiment.stages.gate import untrained
from loramix.experiment.training.gate_start import in_batches, start_prompts
from loramix.mixture.context import masked_mean, unit_scale
from loramix.mixture.gate import ContextGate
from loramix.mixture.means import RANK, main_directions, scatter_of, write_rule
from loramix.mixture.prototypes import SHARPNESS
from loramix.mixture.separation import separate

FORMS = ("named", "bare", "paraphrased", "crossed")
READ = ("mean", "last")
Contexts = Mapping[str, Tensor]  # (2, N, D) by reader: means and last tokens of N prompts
Asked = tuple[str, str]  # test set and task


class Reader:
    """Reads contexts at the gates of a mixture while one expert, or none, acts."""

    def __init__(self, mixture: MixtureModel) -> None:
        self._mixture = mixture
        layers = mixture.layers
        # q, k and v read one input: one of them speaks for all
        inputs = {id(layers[name].shared_a): name for name in reversed(list(mixture.gates))}
        self._readers = list(inputs.values())

    @torch.no_grad()
    def read(self, batches: Sequence[Mapping[str, Tensor]], expert: str | None) -> Contexts:
        """Return what gates could read of these prompts, in float16."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for inputs in batches:
            mask_BT = inputs["attention_mask"].bool()
            hooks = [
                self._mixture.layers[name].register_forward_pre_hook(
                    partial(_note, found[name], mask_BT)
                )
                for name in self._readers
            ]
            try:
                with self._mixture.fixed({} if expert is None else {expert: 1.0}):
                    self._mixture(**inputs, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _note(found: list[Tensor], mask_BT: Tensor, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    found.append(_read(args[0], mask_BT))


def _read(hidden_BTD: Float[Tensor, "B T D"], mask_BT: Tensor) -> Float[Tensor, "2 B D"]:
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = places_T.masked_fill(~mask_BT, -1).amax(1)
    last_BD = hidden_BTD[torch.arange(len(last_B)), last_B]
    return unit_scale(torch.stack([masked_mean(hidden_BTD, mask_BT)[:, 0], last_BD])).half()


def contexts(run: Run, *, alone: bool) -> tuple[dict[str, Contexts], dict[Asked, Contexts]]:
    """Return contexts of every expert's start prompts, and of every question's prompt.

    alone: while the base acts alone, instead of the right expert.
    """
    base = run.load_base()
    mixture = untrained(run, base).eval()
    reader, recipe = Reader(mixture), run.recipe
    start = {}
    for name, batches in start_prompts(run, mixture, base.tokenizer, worded=True).items():
        logging.info("prompts of %s, %s", name, "base alone" if alone else "its expert")
        start[name] = reader.read(batches, None if alone else name)
    found = {}
    few = {"test_sets": FORMS}
    asked = questions(run.changed(comparison=recipe.comparison.model_copy(update=few)))
    for form in FORMS:
        for task in recipe.tasks:
            rows = [
                (asked_task(recipe, each), each.input, None)
                for each in asked
                if (each.test_set, each.task) == (form, task.name)
            ]
            encoded = encode_all(mixture, base.tokenizer, recipe, rows)
            batches = in_batches(mixture, base.tokenizer, encoded)
            own = recipe.own_experts[task.name]
            found[form, own] = reader.read(batches, None if alone else own)
    return start, found


def scores(
    start: Mapping[str, Contexts], asked: Mapping[Asked, Contexts], read: str
) -> dict[Asked, Float[Tensor, "L N E"]]:
    """Return what a gate in every layer says of every question."""
    found: dict[Asked, list[Tensor]] = defaultdict(list)
    names = list(start)
    for reader in start[names[0]]:
        parts = [_chosen(start[name][reader], read) for name in names]
        gate = _fitted(parts)
        for key, each in asked.items():
            with torch.no_grad():
                context_ND = _chosen(each[reader], read)
                found[key].append(gate.score(gate.lift(context_ND).relu()))
    return {key: torch.stack(each) for key, each in found.items()}


def _chosen(context_2ND: Float[Tensor, "2 N D"], read: str) -> Float[Tensor, "N D"]:
    if read in READ:
        return context_2ND[READ.index(read)].float()
    return unit_scale(context_2ND.float().sum(0))


def _fitted(parts: Sequence[Float[Tensor, "_ D"]]) -> ContextGate:
    """Return a gate that is fitted as `from_examples` fits it."""
    experts, width = len(parts), parts[0].shape[1]
    gate = ContextGate(width, experts, GateConfig(hidden=experts))
    means = [part.mean(0) for part in parts]
    apart = [part - mean for part, mean in zip(parts, means, strict=True)]
    directions = [main_directions(each / len(each) ** 0.5, RANK) for each in apart]
    variance = fmean(float(each.square().sum(1).mean()) for each in apart)
    scatter = scatter_of(torch.cat(directions) / experts**0.5, variance, experts=experts)
    with torch.no_grad():
        write_rule(gate, torch.stack(means), scatter, SHARPNESS)
    separate(gate, parts)
    return gate


def cells(found: Mapping[Asked, Float[Tensor, "L N E"]], *, together: bool) -> Iterator[str]:
    """Yield the mean weight of the right expert over tasks, and that of the worst, for every test
    set.
    """
    names = [name for form, name in found if form == FORMS[0]]
    for form in FORMS:
        own = []
        for index, name in enumerate(names):
            scores_LNE = found[form, name]
            scores_LNE = scores_LNE.mean(0, keepdim=True) if together else scores_LNE
            own.append(float(scores_LNE.softmax(-1)[..., index].mean()))
        yield f"{fmean(own):.3f}"
        yield f"{min(own):.3f}"


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with adapters of many_experts.py")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(str(options.results / "many-experts.yaml"), options.overrides)
    heads = [head for form in FORMS for head in (form, "worst")]
    print(f"| below acts | reads | decides | {' | '.join(heads)} |")
    print(f"| --- | --- | --- |{' ---: |' * len(heads)}")
    for alone in (False, True):
        start, asked = contexts(Run(recipe, options.results), alone=alone)
        for read in (*READ, "both"):
            found = scores(start, asked, read)
            for together in (False, True):
                who = "the base" if alone else "the right expert"
                how = "all together" if together else "each gate"
                row = " | ".join(cells(found, together=together))
                print(f"| {who} | {read} | {how} | {row} |", flush=True)


if __name__ == "__main__":
    main()
