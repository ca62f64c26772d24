"""The promises of a mixture, checked on one architecture: each is a difference of two computations.

    one adapter  fixed one-hot weights give PEFT's logits, in one pass and in cached generation
    padding      a row alone gives the logits that it has in a padded batch
    cache        cached greedy generation gives the scores of one pass, and of one without a cache
    training     a pass in training mode, with labels, gives the logits of scoring

A promise that the base itself does not keep says nothing about its mixture.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramix import GateConfig, MixtureModel
from loramix.errors import LoramixError

TOLERANCE = 1e-3  # standard deviations of the logits
NEW = 4  # tokens of an answer
PEFT_REFUSES = ("gate_proj", "out_proj", "conv1d")  # in Mamba, or without up_proj
ROWS, PROMPT, PADDING = 3, 6, 3
Verdict = Literal["exact", "refused", "wrong", "base", "fails"]


@dataclass(frozen=True)
class Cell:
    """The outcome of one check: the difference in standard deviations, or words."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Architecture:
    """A tiny base, and the folders of two adapters made by PEFT."""

    base: PreTrainedModel
    experts: dict[str, Path]

    def copy(self) -> PreTrainedModel:
        """Return a base that may be changed."""
        return copy.deepcopy(self.base)


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Return random ordinary tokens (rows, length)."""
    return torch.randint(10, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


IDS, TARGET = tokens(ROWS, PROMPT), tokens(ROWS, NEW, seed=1)


def accepts(model: nn.Module, name: str) -> bool:
    """Return whether the base's forward takes an argument of this name."""
    base = model.base if isinstance(model, MixtureModel) else model
    return name in inspect.signature(base.forward).parameters


def gap(left: Tensor, right: Tensor) -> float:
    """Return the largest difference in standard deviations."""
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        return float("nan")
    return float((left.float() - right.float()).abs().max() / right.float().std())


def one_pass(model: nn.Module, ids: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the logits at the places of `target` after the prompt `ids`, in one pass."""
    mask = torch.ones_like(ids) if mask is None else mask
    if model.config.is_encoder_decoder:
        output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target)
        return output.logits[:, -target.shape[1] :]
    whole = torch.cat([mask, torch.ones_like(target)], 1)
    given: dict[str, Tensor] = {"input_ids": torch.cat([ids, target], 1), "attention_mask": whole}
    if not whole.all() and accepts(model, "position_ids"):  # RoBERTa counts from another number
        given["position_ids"] = (whole.cumsum(1) - 1).clamp(min=0)
    if isinstance(model, MixtureModel):
        given["prompt_mask"] = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1).bool()
    return model(**given).logits[:, -target.shape[1] :]


def generated(model: nn.Module, *, cache: bool) -> tuple[Tensor, Tensor]:
    """Return the new tokens of greedy generation, and the scores of each."""
    output = model.generate(
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        use_cache=cache,
        num_beams=1,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, -NEW:], torch.stack(output.logits, 1).squeeze(2)


@torch.no_grad()
def padding(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the logits of rows in a padded batch, and of each alone."""
    gaps, mask = torch.full((ROWS, PADDING), 5), torch.ones_like(IDS)
    left = not model.config.is_encoder_decoder
    wide, wide_mask = [gaps, IDS], [0 * gaps, mask]
    if not left:
        wide, wide_mask = wide[::-1], wide_mask[::-1]
    together = one_pass(model, torch.cat(wide, 1), TARGET, torch.cat(wide_mask, 1))
    rows = [one_pass(model, IDS[i : i + 1], TARGET[i : i + 1]) for i in range(ROWS)]
    return together, torch.cat(rows)


@torch.no_grad()
def cache(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the scores of cached generation, twice; and those of one pass and without a cache."""
    answer, scores = generated(model, cache=True)
    _, uncached = generated(model, cache=False)
    return torch.cat([scores, scores]), torch.cat([_scores(model, answer), uncached])


def _scores(model: nn.Module, answer: Tensor) -> Tensor:
    """Return the scores of an answer's tokens in one pass."""
    if model.config.is_encoder_decoder:
        first = torch.full((ROWS, 1), model.config.decoder_start_token_id)
        return one_pass(model, IDS, torch.cat([first, answer[:, :-1]], 1))
    whole = torch.cat([IDS, answer], 1)
    given = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    if isinstance(model, MixtureModel):
        given["prompt_mask"] = torch.cat([torch.ones_like(IDS), 0 * answer], 1).bool()
    return model(**given).logits[:, -NEW - 1 : -1]


def training(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the logits of a pass with labels in training mode, and those of scoring."""
    with torch.no_grad():
        expected = one_pass(model, IDS, TARGET)
    model.train()
    if model.config.is_encoder_decoder:
        found = model(input_ids=IDS, decoder_input_ids=TARGET, labels=TARGET)
    else:
        whole = torch.cat([IDS, TARGET], 1)
        labels = torch.cat([torch.full_like(IDS, -100), TARGET], 1)
        found = model(input_ids=whole, attention_mask=torch.ones_like(whole), labels=labels)
    model.eval()
    return found.logits[:, -NEW:].detach(), expected


CHECKS = {"padding": padding, "cache": cache, "training": training}


def architecture(base: PreTrainedModel, folder: Path, targets: str | list[str]) -> Architecture:
    """Make two strong random adapters with PEFT: of `targets`, and of attention alone."""
    experts = {}
    for seed, (name, chosen) in enumerate({"a": targets, "b": attention_layers(base)}.items()):
        excluded = outputs(base) or []
        if "mamba" in base.config.model_type or base.config.model_type == "falcon_h1":
            excluded += ["out_proj", "conv1d"]
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=chosen, exclude_modules=excluded or None
        )
        adapted = get_peft_model(copy.deepcopy(base), config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                width = parameter.shape[1] ** 0.5  # so that an update is as strong at any width
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = noise * (1.0 if "lora_A" in key else 0.5) / width
        experts[name] = folder / name
        adapted.save_pretrained(folder / name)
    return Architecture(base, experts)


def outputs(base: PreTrainedModel) -> list[str] | None:
    """Return the names of output layers, whose adapters a mixture refuses by name."""
    heads = [base.get_output_embeddings()]
    return [name for name, module in base.named_modules() if module in heads] or None


def attention_layers(base: PreTrainedModel) -> list[str]:
    """Return the linear layers of attention that a text reaches; of what mixes tokens without."""
    reached = reached_layers(base)
    for words in (("attention", "attn"), ("mixer", "mamba", "lstm", "rwkv", "conv"), ("",)):
        found = []
        for name in reached:
            parent = base.get_submodule(name.rpartition(".")[0])
            kinds = f"{name.rpartition('.')[0]} {type(parent).__name__}".lower()
            if any(word in kinds for word in words):
                found.append(name)
        found = [name for name in found if not name.endswith(PEFT_REFUSES)]
        if found:
            return found
    raise ValueError(f"{type(base).__name__} calls no linear layer")


@torch.no_grad()
def reached_layers(base: PreTrainedModel) -> list[str]:
    """Return the linear layers, less the output layer, that a text reaches."""
    reached: dict[str, None] = {}
    heads = outputs(base) or []
    hooks = []
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name not in heads:
            note = partial(_note, reached, name)
            hooks.append(module.register_forward_hook(note))
    one_pass(base, IDS, TARGET)
    for hook in hooks:
        hook.remove()
    return list(reached)


def _note(reached: dict[str, None], name: str, *arguments: object) -> None:
    reached[name] = None


@torch.no_grad()
def one_adapter(made: Architecture, mixture: MixtureModel) -> tuple[Tensor, Tensor]:
    """Return the logits and scores of one-hot mixtures, and those of PEFT."""
    ours, theirs = [], []
    for name, folder in made.experts.items():
        alone = PeftModel.from_pretrained(made.copy(), folder).eval()
        with mixture.fixed({name: 1.0}):
            ours += [one_pass(mixture, IDS, TARGET), generated(mixture, cache=True)[1]]
        theirs += [one_pass(alone, IDS, TARGET), generated(alone, cache=True)[1]]
    return torch.cat(ours), torch.cat(theirs)


def cells(made: Architecture, gate: GateConfig) -> dict[str, Cell]:
    """Return the outcome of every check."""
    try:
        mixture = strengthened(MixtureModel.from_experts(made.copy(), made.experts, gate=gate))
    except Exception as error:
        return dict.fromkeys(["one adapter", *CHECKS], failed(error))
    found = {"one adapter": measured(partial(one_adapter, made, mixture))}
    for name, check in CHECKS.items():
        found[name] = measured(partial(check, mixture))
    return found


def base_cells(base: PreTrainedModel) -> dict[str, Cell]:
    """Return what the base itself keeps."""
    return {name: measured(partial(check, base)) for name, check in CHECKS.items()}


def measured(check: Callable[[], tuple[Tensor, Tensor]]) -> Cell:
    """Return the outcome of one comparison."""
    try:
        difference = gap(*check())
    except Exception as error:
        return failed(error)
    return Cell("exact" if difference < TOLERANCE else "wrong", f"{difference:.2g}")


def failed(error: Exception) -> Cell:
    """Return the outcome of a check that ended with an error, by design or not."""
    words = f"{type(error).__name__}: {error}"
    return Cell("refused" if isinstance(error, LoramixError) else "fails", words)


@torch.no_grad()
def strengthened(mixture: MixtureModel) -> MixtureModel:
    """Give the gates random parameters that tell inputs apart, and return the mixture."""
    generator = torch.Generator().manual_seed(3)
    for gate in mixture.gates.values():
        for linear, scale in ((gate.lift, 2.0), (gate.score, 4.0)):
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight.copy_(noise * scale / linear.in_features**0.5)
            linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) / 2)
        if gate.pooling is not None:
            query = gate.pooling.query
            query.copy_(torch.randn(query.shape, generator=generator) / query.numel() ** 0.5)
    return mixture.eval()
