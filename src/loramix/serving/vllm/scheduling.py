"""vLLM's scheduler for prefix caching: prefixes are shared at equal weights alone.

Gates with context `token` decide by each token, so a prefix means the same in every request that
leaves the weights to them. Requests with weights by hand have other keys and values for the same
tokens.
"""

import json

from vllm.v1.core.sched.scheduler import Scheduler as OwnScheduler
from vllm.v1.request import Request

from loramix.serving.vllm.asking import KEY


class Scheduler(OwnScheduler):  # type: ignore[misc]
    """vLLM's scheduler, in whose cache weights by hand are part of a prefix."""

    def add_request(self, request: Request) -> None:
        """Take a request in, its blocks named by its tokens and its weights."""
        params = request.sampling_params
        told = (params.extra_args or {}).get(KEY) if params is not None else None
        if told is not None:
            weights = told if isinstance(told, str) else json.dumps(told, sort_keys=True)
            request.cache_salt = f"{request.cache_salt or ''} {KEY} {weights}"
            request.block_hashes.clear()
            request.update_block_hashes()
        super().add_request(request)
