"""What vLLM may not be set to, and requests that it may not be asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")
from vllm import SamplingParams
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm_bases import save_mixture
from vllm_running import started

from loramix import GateConfig
from loramix.errors import MixtureError
from loramix.serving.bodies import MOST_WEIGHT
from loramix.serving.vllm import asking
from loramix.serving.vllm.refusals import refuse_settings
from loramix.serving.vllm.settings import settings

EXPERTS = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("saved")
    save_mixture(root, context="token")
    return root / "mixture"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"enable_prefix_caching": True}, "scheduler-cls"),
        ({"worker_cls": "auto"}, "worker_cls"),
        ({"logits_processors": None}, "check of weights"),
        ({"load_format": "dummy"}, "load_format"),
    ],
)
def test_settings_that_would_answer_wrongly_are_refused(
    given: dict[str, object], told: str, folder: Path
) -> None:
    with pytest.raises(MixtureError, match=told), started(folder, **given):
        pass


def test_the_v2_model_runner_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineArgs(**settings(folder, tokens=64)).create_engine_config()
    refuse_settings(config, GateConfig(context="token"))
    monkeypatch.setattr(VllmConfig, "use_v2_model_runner", property(lambda config: True))
    with pytest.raises(MixtureError, match="V2 model runner"):
        refuse_settings(config, GateConfig(context="token"))


def test_every_problem_of_settings_is_told_at_once(folder: Path) -> None:
    config = EngineArgs(**settings(folder, tokens=64)).create_engine_config()
    config.parallel_config.pipeline_parallel_size = 2
    config.model_config.quantization = "awq"
    config.model_config.model_arch_config.architectures = ["LoramixGPT2LMHeadModel"]
    config.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE
    config.cache_config.enable_prefix_caching = True
    with pytest.raises(MixtureError) as error:
        refuse_settings(config, GateConfig(context="prompt", carry=True))
    told = (
        "pipeline",
        "awq",
        "chunked prefill",
        "prefix caching",
        "CUDA graphs",
        "GPT2LMHeadModel",
    )
    assert all(each in str(error.value) for each in told)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("has_inner_state", "recurrent layers"),
        ("is_attention_free", "recurrent layers"),
        ("is_multimodal_model", "pictures or sound"),
        ("is_moe", "data parallelism"),
    ],
)
def test_bases_that_do_not_bear_a_first_pass_are_refused(
    found: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineArgs(**settings(folder, tokens=64)).create_engine_config()
    config.scheduler_config.enable_chunked_prefill = False
    config.parallel_config.data_parallel_size = 2
    refuse_settings(config, GateConfig(first_pass=True))
    monkeypatch.setattr(type(config.model_config), found, property(lambda model: True))
    refuse_settings(config, GateConfig())
    with pytest.raises(MixtureError, match=told):
        refuse_settings(config, GateConfig(first_pass=True))


def test_a_mixture_that_changed_since_the_start_is_refused(tmp_path: Path) -> None:
    save_mixture(tmp_path, context="token")
    overrides = {"architectures": ["LoramixLlamaForCausalLM"], "loramix_sha256": "0" * 64}
    overrides["loramix"] = str(tmp_path / "mixture")
    with (
        pytest.raises(MixtureError, match="has changed"),
        started(tmp_path / "mixture", hf_overrides=overrides),
    ):
        pass


def test_a_base_whose_rows_vllm_puts_in_another_order_is_refused(tmp_path: Path) -> None:
    save_mixture(tmp_path, "bloom", context="token")  # q, k and v of each head side by side
    with pytest.raises(MixtureError, match="another order"), started(tmp_path / "mixture"):
        pass


def test_impossible_weights_are_refused_before_the_request_is_queued(folder: Path) -> None:
    with started(folder) as llm:
        for told in ('{"weights": {"d": 1}}', '{"layers": true}', "no JSON", "[1]"):
            params = SamplingParams(max_tokens=1, extra_args={"loramix": told})
            with pytest.raises(VLLMValidationError, match=r"loramix|expert"):
                llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
        good = SamplingParams(max_tokens=1, extra_args={"loramix": '{"weights": {"b": 1}}'})
        assert llm.generate([{"prompt_token_ids": [5, 6]}], good, use_tqdm=False)


@pytest.mark.parametrize("value", ["1", True, None, float("nan"), 1e9, [1.0]])
def test_weights_are_numbers(value: object) -> None:
    with pytest.raises(MixtureError):
        asking.by_hand({"loramix": {"weights": {"a": value}}}, EXPERTS)


def test_weights_by_hand_are_read_in_the_experts_order() -> None:
    found = asking.by_hand({"loramix": '{"weights": {"c": 2, "a": 0.5}}'}, EXPERTS)
    assert found is not None
    assert found.tolist() == [0.5, 0.0, 2.0]
    largest = asking.by_hand({"loramix": {"weights": {"a": MOST_WEIGHT}}}, EXPERTS)
    assert largest is not None  # as in the embedded engine
    assert asking.by_hand({"loramix": "{}"}, EXPERTS) is None
    assert asking.by_hand(None, EXPERTS) is None
