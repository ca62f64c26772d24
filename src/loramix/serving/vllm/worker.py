"""vLLM's worker (V1 model runner), which tells the mixed layers whose tokens are in a pass."""

from collections.abc import Mapping
from typing import Any

from vllm.forward_context import get_forward_context
from vllm.platforms import current_platform

from loramix.errors import MixtureError
from loramix.serving.vllm.deciding import PASS, end
from loramix.serving.vllm.passes import Pass

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner as OwnRunner
    from vllm.v1.worker.cpu_worker import CPUWorker as OwnWorker
else:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as OwnRunner
    from vllm.v1.worker.gpu_worker import Worker as OwnWorker


class Runner(OwnRunner):  # type: ignore[misc]
    """vLLM's runner, with the requests of each pass in the forward context."""

    _scheduled: Mapping[str, int] | None = None

    def load_model(self, *args: Any, **settings: Any) -> None:
        """Load the model; raises MixtureError if its loader has left the mixture out."""
        super().load_model(*args, **settings)
        if not self.get_model().loramix_ready:
            raise MixtureError(
                "this way of loading hands vLLM's model no weights one by one (load_format), so "
                "the mixture could not be put in; use load_format='auto'"
            )

    def execute_model(self, scheduler_output: Any, *args: Any, **settings: Any) -> Any:
        """Run a pass, whose requests `_model_forward` needs."""
        self._scheduled = scheduler_output.num_scheduled_tokens
        try:
            return super().execute_model(scheduler_output, *args, **settings)
        finally:
            self._scheduled = None

    def _model_forward(self, *args: Any, **settings: Any) -> Any:
        if self._scheduled:
            model, order = self.get_model(), self.input_batch.req_ids
            scheduled = [(name, self._scheduled[name]) for name in order]
            now = model.loramix_slots.next_pass(scheduled, self.requests, self.device)
            model.loramix_held.take(now)
            get_forward_context().additional_kwargs[PASS] = now
            if model.loramix_last is not None and now.undecided:
                self._read_ahead(now, *args, **settings)
        return super()._model_forward(*args, **settings)

    def _read_ahead(self, now: Pass, *args: Any, **settings: Any) -> None:
        """Run the base alone, and let all gates decide together for the requests that begin.

        The pass itself comes after, with the same arguments: it writes all keys and values anew, at
        the same places, and the answers of this one are not used.
        """
        embedded = settings.get("inputs_embeds")
        if embedded is not None:  # vLLM's layers add to them in place
            settings["inputs_embeds"] = embedded.clone()
        now.ahead = True
        super()._model_forward(*args, **settings)
        now.ahead = False
        get_forward_context().moe_layer_index = 0  # vLLM counts layers in a pass
        end(self.get_model().loramix_last, now)


class Worker(OwnWorker):  # type: ignore[misc]
    """vLLM's worker with this runner."""

    def init_device(self) -> None:
        """Make the runner."""
        super().init_device()
        if type(self.model_runner) is not OwnRunner:
            raise MixtureError(
                f"mixtures need vLLM's V1 model runner, and this is {type(self.model_runner)}; set "
                "VLLM_USE_V2_MODEL_RUNNER=0"
            )
        self.model_runner.__class__ = Runner
