"""Where an adapted layer lies in vLLM's model, which puts several layers of the base into one.

Nothing is believed: the base's weight as the checkpoint holds it must be found in vLLM's module at
the very rows and columns to which the experts are to be added.

Axes: `O` output width, `D` input width.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    QKVParallelLinear,
    RowParallelLinear,
)

from loramix.errors import MixtureError


@dataclass(frozen=True)
class Place:
    """A layer of the base within a module of vLLM, on this process's share of it.

    module: its name. index: among the layers in the module. start: of its outputs there.
    rows: which outputs of the layer this process computes. columns: which inputs it reads.
    """

    layer: str
    module: str
    index: int
    start: int
    rows: Tensor
    columns: slice


def places(model: nn.Module, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Place]:
    """Return the place of every layer.

    shapes: (input width, output width) of every adapted layer of the base.

    Raises MixtureError for a layer that vLLM does not have as a linear one, or of another size.
    """
    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    whole_of = {part: whole for whole, parts in packed.items() for part in parts}
    found = {}
    for layer, (inputs, outputs) in shapes.items():
        parent, _, name = layer.rpartition(".")
        whole = whole_of.get(name, name)
        order = packed.get(whole, [whole])
        module = _linear(model, layer, f"{parent}.{whole}")
        sizes = _sizes(module)
        if len(order) == len(sizes):
            index, own = order.index(name), [order.index(name)]
        elif len(order) == 1:  # the base has them in one layer too
            index, own = 0, list(range(len(sizes)))
        else:
            raise _misplaced(layer, f"{len(order)} layers of the base in {len(sizes)} parts")
        if outputs != sum(sizes[part] for part in own) or inputs != module.input_size:
            raise _misplaced(layer, "another shape")
        start = sum(_share(module, sizes, part)[1] for part in range(own[0]))
        rows = torch.cat([_rows(module, sizes, part, sum(sizes[: own[0]])) for part in own])
        columns = _columns(module, inputs)
        found[layer] = Place(layer, f"{parent}.{whole}", index, start, rows, columns)
    return found


class WeightCheck:
    """Compares the checkpoint's weights of adapted layers with what vLLM has made of them.

    transposed: the layers whose weights are kept as (input, output). prefix: before names in the
    base, which some checkpoints leave out.
    """

    def __init__(self, found: Mapping[str, Place], transposed: Iterable[str], prefix: str) -> None:
        self._places, self._transposed = found, set(transposed)
        self._by_name = {f"{layer}.weight": layer for layer in found}
        self._by_name |= {name.removeprefix(prefix): at for name, at in self._by_name.items()}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights, and remember a row and a column of each that counts."""
        for name, weight in weights:
            layer = self._by_name.get(name)
            if layer is not None:
                place = self._places[layer]
                own_OD = weight.T if layer in self._transposed else weight
                own_OD = own_OD[place.rows.to(own_OD.device)][:, place.columns]
                self._seen[layer] = own_OD[:, 0].clone(), own_OD[0].clone()
            yield name, weight

    def check(self, model: nn.Module) -> None:
        """Raise MixtureError for a layer whose weight lies elsewhere in vLLM's module."""
        for layer, place in self._places.items():
            weight = getattr(model.get_submodule(place.module), "weight", None)
            if layer not in self._seen or not isinstance(weight, Tensor):
                raise _misplaced(layer, "no plain weight of that name in the checkpoint")
            here_OD = weight[place.start : place.start + len(place.rows)]
            column_O, row_D = self._seen[layer]
            if not (_equal(here_OD[:, 0], column_O) and _equal(here_OD[0], row_D)):
                raise _misplaced(layer, "its rows or columns in another order")


def _equal(here: Float[Tensor, " N"], there: Float[Tensor, " N"]) -> bool:
    return torch.equal(here, there.to(here.device, here.dtype))


def _linear(model: nn.Module, layer: str, name: str) -> LinearBase:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, LinearBase):
        kind = "nothing" if module is None else f"a {type(module).__name__}"
        raise _misplaced(layer, f"{kind} where a linear layer '{name}' was expected")
    if isinstance(module, RowParallelLinear) and module.tp_size > 1 and not module.reduce_results:
        raise _misplaced(layer, "the sum over the processes taken elsewhere")
    return module


def _misplaced(layer: str, found: str) -> MixtureError:
    return MixtureError(
        f"vLLM's model has, for layer '{layer}' of the base, {found}, so experts cannot be added "
        "there exactly; use loramix serve without --engine vllm, or leave this layer out of the "
        "adapters' target_modules"
    )


def _sizes(module: LinearBase) -> list[int]:
    """Return the output widths of a module's parts in the base, over all processes."""
    if isinstance(module, QKVParallelLinear):
        heads, other = module.total_num_heads, module.total_num_kv_heads
        return [heads * module.head_size, other * module.head_size, other * module.v_head_size]
    return list(getattr(module, "output_sizes", None) or [module.output_size])


def _share(module: LinearBase, sizes: list[int], part: int) -> tuple[int, int]:
    """Return (which share, its width) of a part's outputs this process computes."""
    if not isinstance(module, ColumnParallelLinear) or module.gather_output or module.tp_size == 1:
        return 0, sizes[part]
    if isinstance(module, QKVParallelLinear) and part > 0:
        copies = module.num_kv_head_replicas
        return module.tp_rank // copies, sizes[part] * copies // module.tp_size
    return module.tp_rank, sizes[part] // module.tp_size


def _rows(module: LinearBase, sizes: list[int], part: int, before: int) -> Tensor:
    """Return the layer's outputs of one part that this process computes.

    before: the outputs of the module's other layers ahead of this one.
    """
    share, width = _share(module, sizes, part)
    first = sum(sizes[:part]) - before + share * width
    return torch.arange(first, first + width)


def _columns(module: LinearBase, inputs: int) -> slice:
    if not isinstance(module, RowParallelLinear):
        return slice(0, inputs)
    width = inputs // module.tp_size
    return slice(module.tp_rank * width, (module.tp_rank + 1) * width)
