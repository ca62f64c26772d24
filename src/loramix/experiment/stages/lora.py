"""LoRA finetune: one adapter for every task that trains its own, alone on a frozen base with PEFT;
given adapters are taken over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from loramix.bases.loading import Base
from loramix.bases.spreading import refuse_offloaded
from loramix.config import GateConfig
from loramix.data.tasks import Task
from loramix.errors import StageError
from loramix.experiment.answers import Model, write_answers
from loramix.experiment.given import read_given
from loramix.experiment.labels import expert_key, label
from loramix.experiment.processes import processes
from loramix.experiment.recipe import LoraSpec
from loramix.experiment.run import MODELS, Run
from loramix.experiment.training.trainer import train
from loramix.mixture.fitting import fitted
from loramix.mixture.linear import is_transposed
from loramix.mixture.model import MixtureModel
from loramix.storage.adapter_config import settle
from loramix.storage.experts import LowRank, load_expert
from loramix.storage.export import short_names, write_adapter
from loramix.storage.files import atomic_folder

# as T5, Llama, BART and GPT-2 name them
ATTENTION = {"q", "k", "v", "o", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "c_attn"}


def learn(run: Run, task: Task) -> None:
    """Write the task's adapter and losses under lora/<task>."""
    folder, title = run.folder("lora", task.name), label(expert_key(task.name))
    learn_adapter(run, run.recipe.lora, [task], folder=folder, title=title)


def learn_adapter(
    run: Run, spec: LoraSpec, tasks: Sequence[Task], *, folder: Path, title: str
) -> None:
    """Train one adapter on `tasks` in turn; write it and its losses to `folder`."""
    base = run.load_base()
    refuse_offloaded(base.model, "training an adapter")
    model = adapted(base, spec, seed=run.recipe.seed)
    train(run, model, base.tokenizer, spec, tasks, folder=folder, label=title)
    if not processes().first:
        return
    with atomic_folder(folder / MODELS) as models:
        model.save_pretrained(models)
        # the base as the recipe names it, not the folder it was cached in
        settle(models, base_model_name_or_path=run.recipe.base.name)


def take_over(run: Run, name: str) -> None:
    """Write a given adapter to lora/<expert> as it acts on the recipe's base.

    In one plain form, whatever PEFT made it with: scale 1, one rank, layers by name, nothing of
    what is left out. So it can be merged and routed like the trained ones.
    """
    base = run.load_base()
    updates = fitted(read_given(name, run.recipe.experts[name]), base.model).updates
    modules = dict(base.model.named_modules())
    plain = {
        layer: LowRank(
            updates[layer].down_RD.float(), updates[layer].up_OR.float() * updates[layer].scale, 1.0
        )
        for layer in modules
        if layer in updates
    }
    write_adapter(
        plain,
        run.adapter(name),
        targets=short_names(plain, list(modules)),
        fan_in_fan_out=any(is_transposed(modules[layer]) for layer in plain),
        base_name=base.name,
        revision=base.revision,
        task_type="SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM",
    )


def answer(run: Run, expert: str) -> None:
    """Write the adapter's answers to every task under lora/<expert>."""
    base, adapter = run.load_base(), run.adapter(expert)
    with _asked(base, expert, adapter) as model:
        write_answers(
            run,
            model,
            base.tokenizer,
            folder=run.folder("lora", expert),
            tasks=run.recipe.tasks,
            label=label(expert_key(expert)),
        )


@contextmanager
def _asked(base: Base, expert: str, adapter: Path) -> Iterator[Model]:
    """Yield the base with one adapter."""
    if not any(parameter.is_meta for parameter in base.model.parameters()):
        yield PeftModel.from_pretrained(base.model, adapter)
        return
    # PEFT would take the hooks of an offloaded base away, and put all of it on devices
    experts, name = [load_expert(expert, adapter)], base.name
    mixture = MixtureModel(
        base.model, experts, GateConfig(), base_name=name, revision=base.revision
    )
    with mixture.fixed({expert: 1.0}):
        yield mixture


def adapted(base: Base, spec: LoraSpec, *, seed: int) -> PeftModel:
    """Return the base with a fresh adapter in its target layers, the same for the same seed."""
    targets = list(spec.targets) if spec.targets else attention_layers(base.model)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        fan_in_fan_out="c_attn" in targets,  # GPT-2 keeps its weights transposed
        task_type="SEQ_2_SEQ_LM" if base.model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PeftModel = get_peft_model(base.model, config)
    return model


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names that the query, key, value and output projections have in this model."""
    found = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} & ATTENTION)
    if not found:
        raise StageError(
            f"no attention projections of known names in {type(model).__name__}; set lora.targets"
        )
    return found
