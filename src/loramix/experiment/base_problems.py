"""What a recipe asks of its base that this base does not have; found without its weights."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loramix.data.tasks import Task
from loramix.errors import LoramixError
from loramix.experiment.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# As GPT-2, BART, OPT and others name the table in which a token's position is looked up.
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")


def base_problems(recipe: Recipe) -> Iterator[str]:
    """Yield the layers that no adapter can find in the base, and the prompts too long for it."""
    from loramix.experiment.given import bare_base  # torch takes seconds

    base = bare_base(recipe.base)
    if base is None:
        return  # a missing base is a problem of its own
    if recipe.trained:
        yield from _targets(recipe, base)
    longest = _positions(base)
    if longest is not None:
        for task in recipe.tasks:
            yield from _too_long(task, longest, causal=not base.config.is_encoder_decoder)


def _targets(recipe: Recipe, base: "nn.Module") -> Iterator[str]:
    from loramix.experiment.stages.lora import attention_layers
    from loramix.mixture.linear import linear_shape

    if recipe.lora.targets is None:
        try:
            attention_layers(base)
        except LoramixError as error:
            yield f"lora.targets: {error}"
        return
    linear = {name for name, module in base.named_modules() if linear_shape(module)}
    last = sorted({name.rpartition(".")[2] for name in linear})
    for target in recipe.lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            yield (
                f"lora.targets: no linear layer of {recipe.base.name} has the name '{target}'; its "
                f"linear layers are {', '.join(last)}"
            )


def _positions(base: "PreTrainedModel") -> int | None:
    """Return how many positions a base has learned; None for one that computes them."""
    from torch import nn

    tables = [
        module
        for name, module in base.named_modules()
        if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding)
    ]
    if not tables:
        return None
    limit = base.config.max_position_embeddings  # OPT and BART have rows beyond it
    return int(limit) if isinstance(limit, int) else min(table.num_embeddings for table in tables)


def _too_long(task: Task, longest: int, *, causal: bool) -> Iterator[str]:
    asked, answered = task.max_input_tokens, task.max_new_tokens
    needed = asked + answered if causal else max(asked, answered)
    if needed > longest:
        of = "max_input_tokens and max_new_tokens together" if causal else "each of its limits"
        yield (
            f"task '{task.name}': the base has learned {longest} positions, and {of} may be no "
            f"more; max_input_tokens is {asked} and max_new_tokens {answered}"
        )
