"""Gate groups: which layers share a gate, and which of them it reads from."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from loramix.config import GateConfig, Scope
from loramix.errors import MixtureError
from loramix.mixture.layer import Role
from loramix.mixture.layout import BaseCalls

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def roles(
    base: "PreTrainedModel", layers: Collection[str], scope: Scope, calls: BaseCalls | None
) -> dict[str, Role]:
    """Return the role of every adapted layer, in model order.

    A group is read at the first of its layers that the base calls, which need not be the first one
    registered. calls: how the base calls its layers; None on the meta device, where order and
    form are those of most models.

    Raises MixtureError if a layer reads something else than all tokens.
    """
    ordered = [name for name, _ in base.named_modules() if name in layers]
    if calls is None:
        called, forms = ordered, {}
    else:
        _check_forms(ordered, calls)
        called = sorted(ordered, key=lambda name: calls.layers[name].order)
        forms = {name: form for name in ordered if (form := calls.layers[name].form) is not None}
    readers: dict[str, str] = {}
    for name in called:
        readers.setdefault(_group(base, name, scope), name)
    groups = {name: _group(base, name, scope) for name in ordered}
    return {
        name: Role(name, group, readers[groups[name]], forms.get(name, "rows"), block_of(name))
        for name, group in groups.items()
    }


def check_token_weights(layers: Iterable[str], config: GateConfig, calls: BaseCalls | None) -> None:
    """Raise MixtureError if a layer reads tokens for which gates have no weights.

    Weights that hold for a whole row suffice for any of its tokens; weights for each token are
    neither kept for earlier tokens nor known for a copy of the encoder's output.
    """
    if calls is None or not config.per_token:
        return
    for layer in layers:
        if calls.layers[layer].remade:
            raise MixtureError(
                f"the decoder gives layer '{layer}' the encoder's output in another tensor than "
                f"its own input (transposed or projected), so '{config.context}' gates cannot tell "
                "its tokens: use GateConfig(context='prompt'), or leave this layer out of the "
                "adapter's target_modules"
            )
        if calls.layers[layer].rereads:
            raise MixtureError(
                f"at every step of generation the base gives layer '{layer}' all earlier tokens "
                f"again (it unfolds what lies in the cache), whose weights '{config.context}' "
                "gates do not keep: use GateConfig(context='prompt'), or leave this layer out of "
                "the adapter's target_modules"
            )


def check_readers(old: Iterable[Role], new: Iterable[Role]) -> None:
    """Raise MixtureError if a shared gate would read another layer in the `new` roles."""
    readers = {role.group: role.reader for role in old}
    for role in new:
        before = readers.get(role.group, role.reader)
        if before != role.reader:
            raise MixtureError(
                f"the gate of '{role.group}' was made to read at '{before}', the first adapted "
                f"layer; with these experts that would be '{role.reader}'. Build a new mixture, or "
                "one with scope='layer'"
            )


def block_of(layer: str) -> int:
    """Return the number of a layer's block in its stack; 0 for a layer outside of blocks."""
    return next((int(part) for part in layer.split(".") if part.isdigit()), 0)


def in_decoder(base: "PreTrainedModel", layer: str) -> bool:
    """Return whether the layer lies beside an encoder."""
    return bool(base.config.is_encoder_decoder) and not layer.startswith(_encoder_prefix(base))


def reading_together(
    layers: Mapping[str, tuple[object, ...]], calls: BaseCalls | None
) -> list[list[str]]:
    """Return the layers in groups that can share a down-projection.

    These are the layers of one module to which the base gives the very same tensor: q, k and v of
    self-attention, but not q beside k and v of cross-attention.

    layers: what else must be equal within a group (number format and device), by layer.
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for layer, kind in layers.items():
        parent = layer.rpartition(".")[0]
        source = layer if calls is None else calls.layers[layer].source
        found.setdefault((parent, source, *kind), []).append(layer)
    return list(found.values())


def _check_forms(layers: Iterable[str], calls: BaseCalls) -> None:
    for layer in layers:
        call = calls.layers.get(layer)
        if call is None:
            raise MixtureError(
                f"the base never calls layer '{layer}' when it reads text, so an expert that "
                "adapts it cannot be mixed: leave this layer out of the adapter's target_modules "
                "(in a model that also reads pictures or sound, adapt its language layers)"
            )
        if call.form is None:
            raise MixtureError(
                f"the base gives layer '{layer}' {call.found}, which is not all tokens of all rows "
                "(as in experts to which a router sends some tokens), so gates cannot tell whose "
                "they are, or decide as in training: leave this layer out of the adapter's "
                "target_modules"
            )


def _group(base: "PreTrainedModel", layer: str, scope: Scope) -> str:
    """Return the gate group of a layer: itself, its block (`…layers.0`), or its stack."""
    if scope == "layer":
        return layer
    if scope == "model":
        if not base.config.is_encoder_decoder:
            return "model"
        return "decoder" if in_decoder(base, layer) else "encoder"
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else layer


def _encoder_prefix(base: "PreTrainedModel") -> str:
    encoder = base.get_encoder()
    name: str = next(name for name, module in base.named_modules() if module is encoder)
    return name + "."
