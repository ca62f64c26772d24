"""Where experts act, and with which rank: what routers and merges of equal adapters ask for."""

from loramix.experiment.given import bare_base, read_given, unequal_ranks
from loramix.experiment.recipe import Recipe
from loramix.experiment.stages.lora import attention_layers


def unequal_layouts(recipe: Recipe) -> str | None:
    """Return what differs between the experts, ranks or layers, in words; None if nothing does."""
    if not recipe.experts:
        return None  # all are trained alike
    layers: dict[str, set[str]] = {}
    if recipe.trained:
        targets, base = recipe.lora.targets, bare_base(recipe.base)
        if targets is None and base is not None:
            targets = tuple(attention_layers(base))
        layers = {task.name: set(targets or ()) for task in recipe.trained}
    for name, spec in recipe.experts.items():
        layers[name] = {layer.rpartition(".")[2] for layer in read_given(name, spec).updates}
    words = [f"{name}: {', '.join(sorted(names))}" for name, names in layers.items()]
    alike = all(names == next(iter(layers.values())) for names in layers.values())
    return unequal_ranks(recipe) or (None if alike else f"layers {'; '.join(words)}")
