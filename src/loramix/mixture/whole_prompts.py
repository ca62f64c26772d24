"""Schedulers of transformers' continuous batching for gates that read whole prompts."""

from typing import Any

from loramix.errors import MixtureError


def whole_prompts(kind: str) -> str:
    """Return the name, for transformers, of one of its schedulers that begins whole prompts."""
    from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

    name = f"{kind}, whole prompts"
    if name not in SCHEDULER_MAPPING:
        SCHEDULER_MAPPING[name] = type(name, (WholePrompts, SCHEDULER_MAPPING[kind]), {})
    return name


class WholePrompts:
    """Lets one of transformers' schedulers begin a prompt only where all of it fits into the pass.

    Requests keep their order: none overtakes a longer one, which so gets its turn. One that lost
    its cache may be too long for a pass, with its answer so far: none begins while it is read in
    parts.
    """

    def add_waiting_request(self, state: Any) -> None:
        """Take a request in; raises MixtureError, which fails it alone, if it can never fit."""
        prompt, most = own_prompt(state), self.cache.max_batch_tokens  # type: ignore[attr-defined]
        if prompt > most:
            raise MixtureError(
                f"a prompt gate reads a whole prompt at once, and this one has {prompt} tokens, "
                f"more than a pass may have ({most}): raise max_batch_tokens"
            )
        super().add_waiting_request(state)  # type: ignore[misc]

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """Choose the requests of the next pass."""
        active = self.active_requests.values()  # type: ignore[attr-defined]
        in_parts = any(state.remaining_prefill_tokens for state in active)
        taken = sum(len(state.tokens_to_process) for state in active)
        self._left = 0 if in_parts else token_budget - taken
        return super().schedule_batch(token_budget, cache_budget)  # type: ignore[misc]

    def _get_waiting_candidates(self) -> list[Any]:
        fitting, left = list[Any](), self._left
        for state in super()._get_waiting_candidates():  # type: ignore[misc]
            if own_prompt(state) > left:
                break
            fitting.append(state)
            left -= len(state.remaining_prefill_tokens)
        return fitting


def own_prompt(state: Any) -> int:
    """Return the number of tokens of a request's prompt.

    One that lost its cache comes again with its answer so far at the end of its initial tokens.
    """
    return state._true_initial_tokens or len(state.initial_tokens)
