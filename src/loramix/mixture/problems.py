"""Gate settings that cannot work, said once: for recipes before any work, and for mixtures."""

from collections.abc import Iterator, Sequence
from typing import Literal

from loramix.config import GateConfig

# How gates start, see `loramix.mixture.prototypes`.
Init = Literal["zero", "prototype", "mean", "arrow"]


def gate_problems(
    config: GateConfig, *, experts: int, init: Init = "zero", encoder_decoder: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (setting, problem) for every setting that this many experts or the base do not allow.

    encoder_decoder: whether gates stand in a decoder that reads an encoder's output.
    """
    if config.activation == "top-k" and config.k > experts:
        yield "k", f"cannot keep {config.k} of {experts} experts; use k={experts} or less"
    units = {"zero": 1, "arrow": 2 * experts}.get(init, experts)
    if config.hidden < units:
        yield (
            "hidden",
            f"init '{init}' of {experts} experts needs {units} hidden units in every gate, and "
            f"there are {config.hidden}; use hidden={units} or more",
        )
    if init in ("prototype", "mean") and config.context == "reference":
        yield (
            "init",
            "a reference gate has no biases, which prototypes of examples need; use init 'zero' or "
            "'arrow' (from_adapters)",
        )
    if init == "arrow" and config.context == "prompt" and encoder_decoder:
        yield (
            "init",
            "'arrow' needs gates that read their layer's input, and a decoder's prompt gates read "
            "the encoder's output, on which no adapter acts; use init 'prototype' (from_examples), "
            "or context 'token'",
        )


def loose_state_problem(config: GateConfig, states: Sequence[str]) -> str | None:
    """Return why these gates cannot follow a base that carries `states` beside a cache."""
    if not states or config.context == "token":
        return None
    return (
        f"this base carries {', '.join(states)} from step to step in no cache of transformers, so "
        f"what '{config.context}' gates have decided cannot go with it, and the model that "
        "generates would not be the one that is trained; use GateConfig(context='token')"
    )
