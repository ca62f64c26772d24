"""An expert meets its base: its layers get the base's names, and its update counts from the base's
weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate.utils import align_module_device
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from loramix.errors import ExpertError, did_you_mean
from loramix.mixture.linear import is_transposed, linear_shape
from loramix.storage.adapter_config import patterns_of, scale_of
from loramix.storage.experts import DOWN, PREFIX, UP, Expert, LowRank, refuse_part
from loramix.storage.patterns import check_patterns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLAIN_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fitted(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Return the expert as it acts on this base, without the parts that are left out.

    A fitted expert is returned as it is. Raises ExpertError if the base lacks one of its layers,
    has one of another shape, or if a part cannot be mixed and is not to be left out.
    """
    expert = _renamed(expert, base)
    expert = _without_vocabulary(expert, base)
    expert = _of_linear_layers(expert, base)
    _check_layers(expert, base)
    _check_targets(expert)
    return _from_the_base(expert, base)


def _renamed(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Give layers that transformers has renamed since the adapter was made their new names, as PEFT
    does on loading.
    """
    modules = dict(base.named_modules())
    if all(layer in modules for layer in expert.updates):
        return expert
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
    )

    state = {}
    for layer, update in expert.updates.items():
        state[f"{PREFIX}{layer}{DOWN}"] = update.down_RD
        state[f"{PREFIX}{layer}{UP}"] = update.up_OR
    converted = convert_peft_adapter_state_dict_for_transformers(base, expert.settings, state)
    layers = [
        key.removeprefix(PREFIX).removesuffix(DOWN) for key in converted if key.endswith(DOWN)
    ]
    if set(layers) == set(expert.updates):
        return expert
    updates = {}
    for layer in layers:
        down = converted[f"{PREFIX}{layer}{DOWN}"]
        scale = scale_of(expert.settings, layer, down.shape[0])
        updates[layer] = LowRank(down, converted[f"{PREFIX}{layer}{UP}"], scale)
    return replace(expert, updates=updates)


def _without_vocabulary(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Drop whole embedding and output matrices that are the base's own, or are to be left out."""
    if not expert.whole:
        return expert
    tables = [base.get_input_embeddings(), base.get_output_embeddings()]
    shared = {id(table.weight) for table in tables if table is not None}  # tied under other names
    own = {
        f"{name}.weight": module
        for name, module in base.named_modules()
        if id(getattr(module, "weight", None)) in shared
    }
    for key, tensor in expert.whole.items():
        if key not in own:
            raise ExpertError(
                f"expert '{expert.name}' holds '{PREFIX}{key}' of shape {list(tensor.shape)}, "
                "a whole weight, which is no low-rank update of a linear layer"
            )
        with align_module_device(own[key]):  # it may be offloaded
            table = own[key].weight
            if "vocabulary" not in expert.lossy and not _equal(tensor, table):
                keys = [key, *(each for each in expert.whole if each != key)]
                raise refuse_part(expert.name, "vocabulary", keys, why=_differs(tensor, table))
    return replace(expert, whole={})


def _equal(saved: Tensor, own: Tensor) -> bool:
    return saved.shape == own.shape and torch.equal(saved.to(own.device, own.dtype), own)


def _differs(saved: Tensor, own: Tensor) -> str:
    """Return how a saved table of the vocabulary differs from the base's, and what helps."""
    if saved.shape[0] != own.shape[0]:
        return (
            f" ({saved.shape[0]} rows, and the base has {own.shape[0]}); give a base whose "
            "vocabulary was resized in the same way, with these matrices"
        )
    return " (with other numbers than the base's); give a base that has these matrices"


def _of_linear_layers(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Drop updates of the output layer and of fused expert weights that are to be left out."""
    modules = dict(base.named_modules())
    output = base.get_output_embeddings()
    heads = [layer for layer in expert.updates if modules.get(layer) is output is not None]
    fused = [layer for layer in expert.updates if _is_fused(layer, modules)]
    for part, layers in (("lm_head", heads), ("target_parameters", fused)):
        if layers and part not in expert.lossy:
            raise refuse_part(expert.name, part, layers)
    left = {
        layer: update
        for layer, update in expert.updates.items()
        if layer not in heads and layer not in fused
    }
    if not left:
        raise ExpertError(
            f"expert '{expert.name}' holds nothing but what is left out: {list(expert.lossy)}"
        )
    return replace(expert, updates=left)


def _is_fused(layer: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a layer is no linear layer, but owns weights that PEFT adapts as they are."""
    module = modules.get(layer.replace(".base_layer", ""))
    if module is None or linear_shape(module) is not None:
        return False
    if isinstance(module, nn.MultiheadAttention | nn.Embedding):
        return False
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _check_layers(expert: Expert, base: "PreTrainedModel") -> None:
    """Raise ExpertError if the expert adapts a layer that `base` lacks, or one of another shape."""
    modules = dict(base.named_modules())
    for layer, update in expert.updates.items():
        if layer not in modules:
            raise ExpertError(
                f"expert '{expert.name}' adapts '{layer}', which this {type(base).__name__} does "
                f"not have{did_you_mean(layer, modules)}, nor under a new name that PEFT knows; "
                f"give the base that it was trained on{_named_base(expert)}"
            )
        found = linear_shape(modules[layer])
        if found is None:
            raise ExpertError(
                f"expert '{expert.name}' adapts '{layer}', a {type(modules[layer]).__name__}, "
                "which is no linear layer, so it cannot be mixed"
            )
        wanted = (update.down_RD.shape[1], update.up_OR.shape[0])
        if found != wanted:
            raise ExpertError(
                f"expert '{expert.name}' adapts '{layer}' as {wanted[0]} → {wanted[1]}, "
                f"but the base model's layer is {found[0]} → {found[1]}; it was trained on "
                f"another base{_named_base(expert)}"
            )


def _named_base(expert: Expert) -> str:
    name = expert.settings.base_model_name_or_path
    return f", '{name}' by its adapter_config.json" if name else ""


def _check_targets(expert: Expert) -> None:
    """Raise ExpertError for a layer that PEFT would leave out, as the settings do not name it."""
    targets = expert.settings.target_modules
    if not targets or targets == "all-linear" or expert.settings.target_parameters:
        return
    # once more: the base may have other names than the adapter
    check_patterns(expert.name, patterns_of(expert.settings), list(expert.updates))
    for layer in expert.updates:
        if not check_target_module_exists(expert.settings, layer):
            raise ExpertError(
                f"expert '{expert.name}' holds an update of '{layer}', which its settings do not "
                f"name (target_modules, exclude_modules, layers_to_transform), so PEFT leaves it "
                "out; correct adapter_config.json or save the adapter again"
            )


def _from_the_base(expert: Expert, base: "PreTrainedModel") -> Expert:
    """Let the update of a PiSSA or OLoRA adapter count from the base's own weights.

    Such an adapter belongs to W - s B0 A0, where B0 A0 is what it started from: on the base it is
    s (B A - B0 A0), of twice the rank.
    """
    if expert.start is None:
        return expert
    start = _pissa if expert.start == "pissa" else _olora
    updates = {}
    for layer, update in expert.updates.items():
        module = base.get_submodule(layer)
        with align_module_device(module):  # it may be offloaded
            weight = getattr(module, "weight", None)  # some quantised layers have none
            if not isinstance(weight, Tensor) or weight.dtype not in _PLAIN_FORMATS:
                raise ExpertError(
                    f"expert '{expert.name}' was trained with init_lora_weights='{expert.start}', "
                    f"which starts from the weights of '{layer}', and those are quantised; load "
                    "the base in float32 or bfloat16"
                )
            up0_OR, down0_RD = start(module, weight.detach().float(), update)
        updates[layer] = _difference(update, up0_OR.cpu(), down0_RD.cpu())
    return replace(expert, updates=updates, start=None)


def _difference(update: LowRank, up0_OR: Tensor, down0_RD: Tensor) -> LowRank:
    """Return s (B A - B0 A0) as one update, of twice the rank where the layer is as wide.

    Both products are large and nearly equal. Its singular values let the matrices be as small as
    the difference, so that it survives number formats such as bfloat16.
    """
    up_OR = torch.cat([update.up_OR.double(), -up0_OR.double()], dim=1)
    down_RD = torch.cat([update.down_RD.double(), down0_RD.double()])
    left, up_small = torch.linalg.qr(up_OR)
    right, down_small = torch.linalg.qr(down_RD.T)
    inner_left, values, inner_right = torch.linalg.svd(up_small @ down_small.T, full_matrices=False)
    roots = values.sqrt()
    up_OR = (left @ inner_left) * roots
    down_RD = roots[:, None] * (inner_right @ right.T)
    return LowRank(down_RD.float(), up_OR.float(), update.scale)


def _pissa(module: nn.Module, weight: Tensor, update: LowRank) -> tuple[Tensor, Tensor]:
    """Return B0 and A0 of PiSSA, the largest singular values and vectors of the weight
    (arXiv:2404.02948).
    """
    rank = update.down_RD.shape[0]
    left, values, right = torch.linalg.svd(
        weight.T if is_transposed(module) else weight, full_matrices=False
    )
    roots = (values[:rank] / update.scale).sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _olora(module: nn.Module, weight: Tensor, update: LowRank) -> tuple[Tensor, Tensor]:
    """Return B0 and A0 of OLoRA, the first columns and rows of the weight's QR decomposition
    (arXiv:2406.01775).

    PEFT decomposes the weight as it is stored: of a transposed one, B0 A0 is transposed too.
    """
    rank = update.down_RD.shape[0]
    q, r = torch.linalg.qr(weight)
    if is_transposed(module):
        return r[:rank].T, q[:, :rank].T
    return q[:, :rank], r[:rank]
