"""The vLLM engine: loramix's mixed layers inside vLLM's own models.

HTTP, batching, streaming and metrics are vLLM's. Ours are the layers, the table of what every
request needs, and the refusals. `settings` tells what vLLM is started with; `register` is vLLM's
door to the rest.
"""

PREFIX = "Loramix"  # before the name of vLLM's own architecture


def register() -> None:
    """Give vLLM an architecture `Loramix<X>` for each of its own; called in all its processes."""
    from vllm import ModelRegistry

    own = [name for name in ModelRegistry.get_supported_archs() if not name.startswith(PREFIX)]
    for name in own:
        made = PREFIX + name
        ModelRegistry.register_model(made, f"loramix.serving.vllm.models:{made}")
