"""What vLLM is started with so that it serves a mixture: for its server, and for `vllm.LLM`."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from loramix.bases.embedded import EMBEDDED, embedded_folder, made_once
from loramix.bases.loading import load_config
from loramix.bases.tiny import TINY, tiny_model, tiny_tokenizer
from loramix.errors import CheckpointError, HubError, MissingExtraError, MixtureError
from loramix.serving.vllm import PREFIX
from loramix.serving.vllm.served import Served
from loramix.storage.files import sha256
from loramix.storage.hub import exists, find
from loramix.storage.manifest import CONFIG, MixtureConfig, read_config

_HERE = "loramix.serving.vllm"
# The default on GPUs, the V2 model runner, has no door for what layers must know of requests.
ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
TOKENS = 5120  # of a prompt and its answer, as the embedded engine's limits allow together


def settings(
    mixture: str | Path,
    *,
    name: str | None = None,
    tokens: int = TOKENS,
    dtype: str = "float32",
) -> dict[str, object]:
    """Return the arguments of `vllm.LLM` for a mixture, a folder or Hub id.

    The process needs the variables in `ENVIRONMENT` as well.

    name: in the API. tokens: the longest prompt with its answer, if the base can read as many.

    Raises MixtureError for a mixture that vLLM cannot answer exactly.
    """
    try:
        folder = find(mixture).folder.resolve()
    except HubError as error:
        raise CheckpointError(f"there is no mixture '{mixture}': it is {error}") from error
    config = read_config(folder)
    source = _base_source(config.base)
    base = load_config(source, revision=config.revision)
    refuse_mixture(config, encoder_decoder=bool(base.is_encoder_decoder))
    longest = min(tokens, getattr(base, "max_position_embeddings", tokens))
    served = Served(str(folder), name or folder.name)
    per_prompt = config.gate.context == "prompt"
    found: dict[str, object] = {
        "model": source,
        "served_model_name": list(served.models),
        "dtype": dtype,
        "max_model_len": longest,
        "hf_overrides": {
            "architectures": [PREFIX + (base.architectures or [type(base).__name__])[0]],
            "loramix": str(folder),
            # vLLM's cache of compiled models knows a mixture by what stands here
            "loramix_sha256": sha256(folder / CONFIG),
        },
        "worker_cls": f"{_HERE}.worker.Worker",
        "logits_processors": [f"{_HERE}.asking:{served.as_attribute}"],
        "enable_prefix_caching": False,
        "enable_chunked_prefill": not per_prompt,
        "compilation_config": {"cudagraph_mode": "NONE"},
    }
    if config.revision is not None:
        found["revision"] = found["tokenizer_revision"] = config.revision
    if per_prompt:
        found["max_num_batched_tokens"] = max(longest, 2048)
    return found


def command(
    found: Mapping[str, object], *, host: str, port: int, rows: int, more: Sequence[str] = ()
) -> list[str]:
    """Return the command of vLLM's OpenAI server with these settings.

    rows: answers generated together, at most. more: further arguments of vLLM's own.

    Raises MissingExtraError where vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    checks = found["logits_processors"]
    assert isinstance(checks, list)
    middleware = f"{_HERE}.http.{checks[0].partition(':')[2]}"
    given = {
        **found,
        "host": host,
        "port": port,
        "max_num_seqs": rows,
        "middleware": middleware,
        "allowed_origins": "[]",  # vLLM's default lets any web page in the user's browser ask
    }
    flags = [part for key, value in given.items() for part in _flag(key, value)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, *more]


def refuse_mixture(config: MixtureConfig, *, encoder_decoder: bool) -> None:
    """Raise MixtureError for a mixture that vLLM cannot answer exactly, whatever its base."""
    if encoder_decoder:
        raise MixtureError(
            f"the base '{config.base}' is an encoder-decoder, which the vLLM engine does not "
            "serve; use loramix serve without --engine vllm"
        )
    if config.gate.context == "reference":
        raise MixtureError(
            "the reference gate averages over the whole target, which does not exist yet during "
            "generation; train a gate with context='prompt' to generate"
        )


def _base_source(name: str) -> str:
    """Return what vLLM finds a base by: a folder or a Hub id."""
    if name in EMBEDDED:
        return str(embedded_folder(name))
    if name in TINY:

        def fill(folder: Path) -> None:
            tiny_model(name).save_pretrained(folder)
            tiny_tokenizer(name).save_pretrained(folder)

        return str(made_once(f"{name}-for-vllm", fill))
    try:
        return str(find(name).folder.resolve()) if exists(name) else name
    except HubError as error:
        raise CheckpointError(f"the base '{name}' is {error}") from error


def _flag(key: str, value: object) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
