"""Gate: all adapters frozen in one mixture, its gates trained in turn on every task that has an
expert.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from loramix.bases.loading import Base
from loramix.config import Prompting
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Encoded, generation_batch
from loramix.experiment.answers import encode_all, write_answers
from loramix.experiment.labels import MIXTURE, label
from loramix.experiment.processes import processes
from loramix.experiment.run import MODELS, WEIGHT_COLUMNS, WEIGHTS, Run
from loramix.experiment.training.gate_check import GateCheck
from loramix.experiment.training.gate_start import start_gates
from loramix.experiment.training.gate_trainer import GateTrainer
from loramix.experiment.training.trainer import train
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import soften
from loramix.storage.files import write_csv


def learn(run: Run) -> None:
    """Write the mixture and the losses of its gates under cgm."""
    learn_gates(run, folder=run.folder("gate"), title=label(MIXTURE))


def learn_gates(run: Run, *, folder: Path, title: str) -> None:
    """Write the mixture of the recipe's `gate` and `seed`, and its gates' losses, to `folder`."""
    base, spec, tasks = run.load_base(), run.recipe.gate, run.recipe.routed
    mixture = untrained(run, base)
    own = [run.recipe.own_experts[task.name] for task in tasks]
    start_gates(run, mixture, base.tokenizer)
    check = GateCheck(run, mixture, base.tokenizer)
    if spec.init == "prototype" and spec.epochs and mixture.prototypes is not None:
        soften(mixture)
    train(
        run,
        mixture,
        base.tokenizer,
        spec,
        tasks,
        folder=folder,
        label=f"gates of {title}",
        trainer_class=partial(
            GateTrainer, spec=spec, tasks=tasks, own=own, experts=mixture.expert_names
        ),
        bare=spec.bare,
    )
    check.finish(folder, trained=spec.epochs > 0, keep_start=spec.keep_start)
    if processes().first:
        mixture.save_pretrained(folder / MODELS)


def answer(run: Run) -> None:
    """Write the mixture's answers to every task and its mean weights under cgm."""
    base, folder, tasks = run.load_base(), run.folder("gate"), run.recipe.tasks
    mixture = MixtureModel.from_pretrained(folder / MODELS, base=base.model)
    write_answers(run, mixture, base.tokenizer, folder=folder, tasks=tasks, label=label(MIXTURE))
    rows: list[tuple[str, str, str, float]] = []
    for task in tasks:
        rows += _mean_weights(run, mixture, base.tokenizer, task)
    if processes().first:
        write_csv(folder / WEIGHTS, WEIGHT_COLUMNS, rows)


def prompt_batches(
    model: MixtureModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    *,
    size: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the prompts in batches as the model takes them, in order."""
    causal = not model.config.is_encoder_decoder
    for first in range(0, len(encoded), size):
        batch = generation_batch(tokenizer, encoded[first : first + size], causal)
        yield {key: value.to(model.device) for key, value in batch.items()}


def untrained(run: Run, base: Base) -> MixtureModel:
    """Return the run's experts at uniform weights, the same mixture for the same seed."""
    templates = {task.name: task.prompt for task in run.recipe.tasks}
    with torch.random.fork_rng():  # the caller's random state stays as it is
        torch.manual_seed(run.recipe.seed)
        return MixtureModel(
            base.model,
            run.experts(),
            run.recipe.gate.config,
            base_name=base.name,
            revision=base.revision,
            prompting=Prompting(chat=run.recipe.base.chat, templates=templates),
        )


def _mean_weights(
    run: Run, mixture: MixtureModel, tokenizer: PreTrainedTokenizerBase, task: Task
) -> list[tuple[str, str, str, float]]:
    """Return (layer, task, expert, mean weight over the test prompts) of all layers and experts."""
    samples, size = run.test_samples(task), run.recipe.generation.batch_size
    asked = [(task, sample.input, None) for sample in samples]
    encoded = encode_all(mixture, tokenizer, run.recipe, asked)

    def summed(part: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        (batch,) = prompt_batches(mixture, tokenizer, part, size=size)
        means = mixture.mean_weights(**batch)
        return {layer: weights_BE.sum(0).cpu() for layer, weights_BE in means.items()}

    parts = [encoded[first : first + size] for first in range(0, len(encoded), size)]
    sums: dict[str, torch.Tensor] = {}  # (E,) by layer; sums, as the last batch may be short
    for of_batch in processes().divided(parts, summed):
        sums = {layer: sums.get(layer, 0) + each for layer, each in of_batch.items()}
    rows = []
    for layer, sums_E in sums.items():
        means_E = sums_E / len(samples)
        for expert, mean in zip(mixture.expert_names, means_E, strict=True):
            rows.append((layer, task.name, expert, round(float(mean), 6)))
    return rows
