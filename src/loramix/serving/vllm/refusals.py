"""Settings of vLLM with which a mixture could not be answered exactly: refused before any work."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.serving.vllm import PREFIX

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULER = f"{__package__}.scheduling.Scheduler"
# Bases in which the order of the gates is known to be that of the base in transformers.
_ORDERED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def refuse_settings(config: "VllmConfig", gate: GateConfig) -> None:
    """Raise MixtureError for all settings that do not go with these gates."""
    found = [*_of_any(config), *_of_gates(config, gate)]
    if found:
        raise MixtureError(
            "vLLM was started in a way that mixtures do not allow: "
            + "; ".join(found)
            + ". Start it by `loramix serve MIXTURE --engine vllm`, or with "
            "loramix.serving.vllm.settings"
        )


def _of_any(config: "VllmConfig") -> Iterator[str]:
    """Yield problems that any mixture has."""
    model, parallel = config.model_config, config.parallel_config
    if config.use_v2_model_runner:
        yield "the V2 model runner (set VLLM_USE_V2_MODEL_RUNNER=0)"
    if not str(parallel.worker_cls).startswith(f"{__package__}.worker"):
        yield f"worker_cls is {parallel.worker_cls}"
    if not any(__package__ in str(each) for each in model.logits_processors or ()):
        yield "logits_processors lack the check of weights by hand"
    if model.quantization is not None:
        yield f"the base is quantised ({model.quantization})"
    if model.runner_type != "generate":
        yield f"the runner is '{model.runner_type}'"
    if config.speculative_config is not None:
        yield "speculative decoding"
    if config.lora_config is not None:
        yield "vLLM's own LoRA"
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism"
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        yield "context parallelism"
    if parallel.use_ubatching:
        yield "passes in micro-batches"
    if config.kv_transfer_config is not None:
        yield "caches from other servers"


def _of_gates(config: "VllmConfig", gate: GateConfig) -> Iterator[str]:
    """Yield problems of these gates."""
    if gate.first_pass:
        yield from _of_first_pass(config)
    if gate.context == "prompt" and config.scheduler_config.enable_chunked_prefill:
        yield "chunked prefill, and a prompt gate reads the whole prompt at once"
    if config.cache_config.enable_prefix_caching:
        if gate.context != "token":
            yield "prefix caching, as a prefix holds the weights of one request alone"
        elif config.scheduler_config.scheduler_cls != SCHEDULER:
            yield f"prefix caching that does not know weights by hand (--scheduler-cls {SCHEDULER})"
    alone = gate.context == "token" and gate.scope == "layer" and not gate.carry
    if not alone and config.compilation_config.cudagraph_mode.name != "NONE":
        yield "CUDA graphs, which skip what these gates decide (cudagraph_mode NONE)"
    architecture = config.model_config.architectures[0].removeprefix(PREFIX)
    if gate.carry and architecture not in _ORDERED:
        yield f"gates carry evidence on (carry) in {architecture}; only in {', '.join(_ORDERED)}"


def _of_first_pass(config: "VllmConfig") -> Iterator[str]:
    """Yield what would not bear the base's reading ahead: each pass then runs twice."""
    model, without = config.model_config, "(make the mixture with --no-first-pass)"
    if model.has_inner_state or model.is_hybrid or model.is_attention_free:
        yield f"a base with recurrent layers, whose states a first pass would move on {without}"
    if model.is_multimodal_model:
        yield f"a base that reads pictures or sound, which a first pass would use up {without}"
    if config.parallel_config.data_parallel_size > 1 and model.is_moe:
        yield f"data parallelism of experts, where all must run as many passes {without}"
