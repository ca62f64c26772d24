"""A client that knows nothing of loramix: the `llm` command line and library."""

from collections.abc import Callable
from pathlib import Path

import pytest
from running import running, tiny_mixture


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_llm_asks_and_streams(
    make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = pytest.importorskip("llm", reason="the peer client `llm` is not installed")
    with running(tiny_mixture(make_adapter)) as server:
        models = "".join(
            f"- model_id: {name}\n  model_name: {name}\n  api_base: {server.url}/v1\n"
            for name in ("tiny", "tiny:a")
        )
        (tmp_path / "extra-openai-models.yaml").write_text(models, encoding="utf-8")
        monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
        for name, weights in (("tiny", None), ("tiny:a", {"a": 1.0})):
            for stream in (False, True):
                model = llm.get_model(name)
                model.key = "none"
                answer = model.prompt("a river", stream=stream, temperature=0, max_tokens=12)
                assert answer.text() == server.alone("a river", 12, weights=weights)[0]
