"""transformers' continuous batching (`generate_batch`) of a mixture.

It runs in a thread of its own, which swallows what is raised there. So what gates cannot follow is
refused before: at the start, or where a request comes in. Gates with context `token` need nothing
of this: their weights depend on each token alone.

    prompt     decided when a request's prompt is read, all of it in one pass; kept by slot. With
               `first_pass`, by all gates together: passes in which requests begin run twice, the
               base alone first, and its keys and values are overwritten
    running    from sums by slot, that go on from pass to pass
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.generation import ContinuousBatchingConfig

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.context import in_float32
from loramix.mixture.pooling import AttentionPooling, unit_scale
from loramix.mixture.requests import (
    Packed,
    Row,
    SlotNumbers,
    grown,
    prompt_contexts,
    prompts_in_parts,
    running_means,
)
from loramix.mixture.state import current
from loramix.mixture.whole_prompts import own_prompt, whole_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loramix.mixture.gate import ContextGate, Evidence

_BLOCKS = {
    "fixed": "weights set by hand",
    "held": "weights set by hand in some rows",
    "prompt_lengths": "mixture.reading",
    "record": "routing weights are recorded",
}
_PACKED = ("prompt", "running")  # contexts whose gates must know whose tokens are in a pass
_TOGETHER = ""  # the group, in tables, of gates that decide together


def guard_batching(base: "PreTrainedModel", config: GateConfig) -> None:
    """Let the base batch continuously as its gates can follow, and refuse the rest."""
    if hasattr(base, "init_continuous_batching"):
        kept = partial(type(base).init_continuous_batching, base)
        base.init_continuous_batching = partial(_checked_batching, base, config, kept)


def packed_requests(config: GateConfig, arguments: Mapping[str, object]) -> "Pass | None":
    """Return the requests of a pass of continuous batching; None if it is another call.

    Raises MixtureError for a pass that these gates cannot follow.
    """
    if arguments.get("read_index") is None or config.context not in _PACKED:
        return None
    requests = getattr(arguments.get("cache"), "loramix_requests", None)
    if not isinstance(requests, Requests):
        raise MixtureError(
            "this call packs several requests into one row without telling whose tokens they are, "
            f"where a gate with context='{config.context}' would average over all of them; call "
            "generate_batch or continuous_batching_context_manager of the mixture's base"
        )
    return requests.next_pass()


class Requests:
    """The requests of one manager of transformers, and what gates remember of them, by slot.

    tables: gate group -> weights (S, E) that its prompts decided, or sums and counts (S, F).
    """

    def __init__(self, processor: Any) -> None:
        self._processor, self._slots = processor, SlotNumbers()
        self.tables: dict[str, Tensor] = {}

    def next_pass(self) -> "Pass":
        """Return the pass that transformers has prepared."""
        scheduler = self._processor.scheduler
        alive = scheduler.active_requests.keys() | scheduler.waiting_requests.keys()
        for gone in self._slots.names - alive:
            self._slots.free(gone)
        rows, start = list[Row](), 0
        for future in self._processor.inputs_and_outputs.requests_in_batch:
            state, end = future.state, start + future.query_length
            rows.append(
                Row(
                    slot=self._slots[state.request_id],
                    start=start,
                    end=end,
                    begins=state.position_offset == future.query_length,  # these are counted in it
                    prompt=own_prompt(state),
                )
            )
            start = end
        return Pass(rows, self._processor.model_device, self.tables)


class Pass(Packed):
    """The requests of one pass, and their gates' decisions."""

    def __init__(self, rows: list[Row], device: torch.device, tables: dict[str, Tensor]) -> None:
        super().__init__(rows, device)
        self._tables = tables
        # an input, how it was pooled, and its contexts
        self._read: tuple[Tensor, AttentionPooling | None, Tensor] | None = None

    def decide(
        self,
        gate: "ContextGate",
        group: str,
        x_1TD: Float[Tensor, "1 T D"],
        evidence: "Evidence | None",
    ) -> Float[Tensor, "1 T E"]:
        """Return what the gate of a group decides for every token."""
        if gate.config.context == "running":
            context_1TD = self._context(x_1TD, None, partial(self._running, group))
            return self._gate(gate, context_1TD, evidence)
        if self.beginning:
            read = partial(self._prompts, gate.pooling)
            context_1ND = self._context(x_1TD, gate.pooling, read)
            self._keep(group, self._gate(gate, context_1ND, evidence)[0])
        return self._kept(group)

    def prompts(self) -> tuple[Bool[Tensor, "1 T"], Int[Tensor, "1 T"]]:
        """Return which tokens are prompts of requests that begin, and the number of each token's
        request in the pass, as calls have them for packed rows.
        """
        self._check_whole()
        prompt_1T = torch.zeros(1, self.tokens, dtype=torch.bool)
        for row in self.beginning:
            prompt_1T[0, row.start : row.start + row.prompt] = True
        number_T = torch.arange(len(self.rows)).repeat_interleave(self.lengths)
        return prompt_1T.to(self.device), number_T[None].to(self.device)

    def keep_together(self, weights_1TE: Float[Tensor, "1 T E"]) -> None:
        """Keep what all gates have decided together for the requests that begin."""
        self._keep(_TOGETHER, weights_1TE[0, [row.start for row in self.beginning]])

    def kept_together(self) -> Float[Tensor, "1 T E"]:
        """Return what all gates decided together for the request of every token."""
        return self._kept(_TOGETHER)

    def _keep(self, group: str, decided_NE: Float[Tensor, "N E"]) -> None:
        table_SE = grown(self._tables.get(group), self.most_slots, decided_NE)
        table_SE[[row.slot for row in self.beginning]] = decided_NE
        self._tables[group] = table_SE

    def _kept(self, group: str) -> Float[Tensor, "1 T E"]:
        return self._tables[group][self.slot_T][None]

    def _context(
        self, x_1TD: Tensor, pooling: AttentionPooling | None, read: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "1 _ D"]:
        """Return what gates read of an input, once for all groups that read the same."""
        last = self._read
        if last is None or last[0] is not x_1TD or last[1] is not pooling:
            with in_float32(x_1TD):
                self._read = last = x_1TD, pooling, read(x_1TD[0])[None]
        return last[2]

    def _prompts(
        self, pooling: AttentionPooling | None, x_TD: Float[Tensor, "T D"]
    ) -> Float[Tensor, "N D"]:
        self._check_whole()
        return prompt_contexts(x_TD, self.beginning, pooling)

    def _check_whole(self) -> None:
        if prompts_in_parts(self):
            raise MixtureError("a prompt gate reads a whole prompt at once, and this one is split")

    def _running(self, group: str, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        means_TD, self._tables[group] = running_means(x_TD, self, self._tables.get(group))
        return unit_scale(means_TD)

    def _gate(
        self, gate: "ContextGate", context_1ND: Tensor, evidence: "Evidence | None"
    ) -> Float[Tensor, "1 N E"]:
        mask_1N = torch.ones_like(context_1ND[..., 0], dtype=torch.bool)
        weights_1NE: Tensor = gate(context_1ND, mask_1N, evidence)
        return weights_1NE


def _checked_batching(
    base: "PreTrainedModel",
    config: GateConfig,
    begin: Callable[..., Any],
    *args: object,
    **settings: object,
) -> Any:
    _check_thread()
    if config.context == "token":
        return begin(*args, **settings)
    named = inspect.signature(begin).bind(*args, **settings).arguments
    given = named.get("continuous_batching_config")
    given = ContinuousBatchingConfig(allow_block_sharing=False) if given is None else copy(given)
    generation = named.get("generation_config") or base.generation_config
    found = list(_problems(base, config, generation, given))
    if found:
        raise MixtureError(
            f"transformers' continuous batching, with a gate of context='{config.context}', goes "
            f"without {'; '.join(found)}; or use mixture.generate, or `loramix serve`"
        )
    kept = vars(base).get("_cached_continuous_batching_manager")
    if kept is not None and "_create_batch_processor" not in vars(kept):
        raise MixtureError(
            "the base keeps a manager from before it was part of this mixture; call "
            "base.destroy_cached_continuous_batching_manager()"
        )
    # what was left to transformers to decide
    given.use_async_batching = given.use_cuda_graph = given.auto_switch_to_flash = False
    if config.context == "prompt":
        given.scheduler_type = whole_prompts(given.scheduler_type)
    manager = begin(**{**named, "continuous_batching_config": given})
    manager._create_batch_processor = partial(_followed, manager)
    return manager


def _check_thread() -> None:
    """Raise MixtureError in a block that holds in this thread alone."""
    state = current()
    for name in ("fixed", "held", "prompt_lengths", "record"):
        if getattr(state, name) is not None:
            raise MixtureError(
                "continuous batching runs in a thread of its own, which does not see the block "
                f"that it is called in ({_BLOCKS[name]}); leave it, or use mixture.generate"
            )


def _problems(
    base: "PreTrainedModel", config: GateConfig, generation: Any, given: ContinuousBatchingConfig
) -> Iterator[str]:
    """Yield the settings at which these gates would not decide as alone, or are untried."""
    if config.context not in _PACKED:
        yield f"gates that read whole targets (context='{config.context}')"
    if given.allow_block_sharing:
        yield (
            "block sharing, as a prefix holds the weights of one request alone "
            "(ContinuousBatchingConfig(allow_block_sharing=False))"
        )
    if (getattr(generation, "num_return_sequences", None) or 1) > 1:
        yield "forks of a request (num_return_sequences=1)"
    if given.use_async_batching:
        yield "passes prepared ahead (use_async_batching=False)"
    if any(given.cuda_graph_booleans):
        yield "CUDA graphs, which skip what gates decide (use_cuda_graph=False)"
    text = base.config.get_text_config()
    compiled = given.varlen_compile_config or given.decode_compile_config
    if compiled or given.default_compile_level or getattr(text, "compile_config", None):
        yield "compilation (default_compile_level=0, and no compile_config)"
    if given.cpu_offload_space != 0:
        yield "caches kept on the host (cpu_offload_space=0)"
    if given.scheduler_type not in ("fifo", "prefill_first"):
        yield f"a scheduler '{given.scheduler_type}' (scheduler_type='fifo' or 'prefill_first')"
    if "flash" in str(base.config._attn_implementation):
        yield "flash attention, which nobody has tried with them (attn_implementation='sdpa')"


def _followed(manager: Any) -> Any:
    """Return the manager's processor of batches, whose passes tell gates whose tokens they hold."""
    processor = type(manager)._create_batch_processor(manager)
    processor.cache.loramix_requests = Requests(processor)
    return processor
