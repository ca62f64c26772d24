"""Base models and encoders by name: embedded, tiny, a folder, or a Hub id."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.errors import BaseModelError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_BASES, _ENCODERS, _TINY = ("smollm2-135m",), ("minilm-l6",), ("tiny-gpt2", "tiny-llama", "tiny-t5")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Base:
    """A loaded base model; `revision` is the commit of a Hub model, None for everything that cannot change."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    revision: str | None


def base_names() -> list[str]:
    """Return the names that need neither a folder nor a hub."""
    return [*_BASES, *_TINY]


def load_base(name: str, *, revision: str | None = None, dtype: str = "float32") -> Base:
    """Return a causal or encoder-decoder model in evaluation mode, with its tokenizer.

    name: one of `base_names()`, a folder, or a Hub id. dtype: float32, bfloat16, float16 or auto.
    Raises BaseModelError if there is no such model, or it cannot be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    number = dtype if dtype == "auto" else getattr(torch, dtype)
    if name in _TINY:
        from loramix.tiny import tiny_model

        model = tiny_model(name)
        return Base(model if dtype == "auto" else model.to(number), load_tokenizer(name), name, None)
    revision = resolve_revision(name, revision)
    source = _source(name)
    auto = AutoModelForSeq2SeqLM if load_config(name, revision=revision).is_encoder_decoder else AutoModelForCausalLM
    try:
        model = auto.from_pretrained(source, revision=revision, dtype=number)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    return Base(model.eval(), load_tokenizer(name, revision=revision), name, revision)


def load_tokenizer(name: str, *, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer; one without a padding token pads with its end token."""
    if name in _TINY:
        from loramix.tiny import tiny_tokenizer

        return tiny_tokenizer(name)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_source(name), revision=revision)
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def load_config(name: str, *, revision: str | None = None) -> "PreTrainedConfig":
    """Return the model's configuration, without its weights."""
    if name in _TINY:
        from loramix.tiny import tiny_model

        return tiny_model(name).config
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(_source(name), revision=revision)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error


def resolve_revision(name: str, revision: str | None) -> str | None:
    """Return the commit that a Hub model is pinned to, read from the local cache when offline; None for the rest."""
    if name in (*_BASES, *_ENCODERS, *_TINY) or Path(name).is_dir():
        return None
    if not _HUB_ID.fullmatch(name):
        raise _not_found(name, None)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _not_found(name, error) from error


def encoder_path(name: str) -> str:
    """Return the folder of an embedded or tiny encoder, made when needed; any other name as it is."""
    from loramix.embedded import cache_root, embedded_folder

    if name == "tiny-bert":
        from loramix.atomic import atomic_folder
        from loramix.tiny import save_tiny_encoder

        with atomic_folder(cache_root() / name) as folder:
            save_tiny_encoder(folder)
        return str(cache_root() / name)
    return str(embedded_folder(name)) if name in _ENCODERS else name


def _source(name: str) -> str:
    if name in _BASES:
        from loramix.embedded import embedded_folder

        return str(embedded_folder(name))
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        raise _not_found(name, None)
    return name


def _not_found(name: str, cause: Exception | None) -> BaseModelError:
    known = base_names()
    reason = f": {str(cause).splitlines()[0]}" if cause is not None and str(cause) else ""
    return BaseModelError(
        f"there is no base model '{name}'{did_you_mean(name, known)}: it is none of {', '.join(known)}, no folder with a "
        f"model, and no model that could be loaded from the hub or its local cache{reason}"
    )
