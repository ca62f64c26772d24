"""Base models and encoders by name: embedded, tiny, a folder, or a Hub id."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loramix.bases.devices import number_format
from loramix.errors import BaseModelError, HubError, did_you_mean
from loramix.storage.hub import find, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_BASES, _ENCODERS, _TINY = ("smollm2-135m",), ("minilm-l6",), ("tiny-gpt2", "tiny-llama", "tiny-t5")
_DTYPES = ("float32", "bfloat16", "float16", "fast", "auto")


@dataclass(frozen=True)
class Base:
    """A loaded base model; `revision` is the commit of a Hub model, None for everything that cannot
    change.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    revision: str | None


def base_names() -> list[str]:
    """Return the names that need neither a folder nor a hub."""
    return [*_BASES, *_TINY]


def load_base(name: str, *, revision: str | None = None, dtype: str = "float32") -> Base:
    """Return a causal or encoder-decoder model in evaluation mode, with its tokenizer.

    name: one of `base_names()`, a folder, or a Hub id. dtype: float32, bfloat16, float16, fast (see
        `number_format`) or auto (as stored).
    Raises BaseModelError if there is no such model, it cannot be reached, or some of its weights
    are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if dtype not in _DTYPES:
        raise BaseModelError(
            f"no number format '{dtype}'{did_you_mean(dtype, _DTYPES)}; there are "
            f"{', '.join(_DTYPES)}"
        )
    number = dtype if dtype == "auto" else getattr(torch, number_format(dtype))
    revision = resolve_revision(name, revision)
    tokenizer = load_tokenizer(name, revision=revision)
    if name in _TINY:
        from loramix.bases.tiny import tiny_model

        tiny = tiny_model(name)
        return Base(tiny if dtype == "auto" else tiny.to(number), tokenizer, name, None)
    auto = (
        AutoModelForSeq2SeqLM
        if load_config(name, revision=revision).is_encoder_decoder
        else AutoModelForCausalLM
    )
    source = _source(name)
    with _in_words(name):
        model, report = auto.from_pretrained(
            source,
            revision=revision,
            dtype=number,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        raise BaseModelError(
            f"base model '{name}' lacks weights: {', '.join(sorted(report['missing_keys']))}"
        )
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)
    return Base(model.eval(), tokenizer, name, revision)


def load_tokenizer(name: str, *, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer; one without a padding token pads with its end token."""
    if name in _TINY:
        from loramix.bases.tiny import tiny_tokenizer

        return tiny_tokenizer(name)
    from transformers import AutoTokenizer

    revision, source = resolve_revision(name, revision), _source(name)
    with _in_words(name):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str, *, revision: str | None = None) -> "PreTrainedConfig":
    """Return the model's configuration, without its weights."""
    if name in _TINY:
        from loramix.bases.tiny import tiny_model

        return tiny_model(name).config
    from transformers import AutoConfig

    revision, source = resolve_revision(name, revision), _source(name)
    with _in_words(name):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def resolve_revision(name: str, revision: str | None) -> str | None:
    """Return the commit that a Hub model is pinned to, read from the local cache when offline; None
    for the rest.

    Raises BaseModelError if there is no such model, or if a revision is asked of one that has none.
    """
    if name in (*_BASES, *_ENCODERS, *_TINY):
        if revision is not None:
            raise BaseModelError(
                f"'{name}' has no revisions, so it cannot be had at '{revision}'; leave the "
                "revision out"
            )
        return None
    try:
        found = find(name, revision=revision, files=["config.json"])
    except HubError as error:
        raise _not_found(name, revision, error) from error
    if not (found.folder / "config.json").is_file():
        raise BaseModelError(f"folder '{name}' holds no base model: it has no config.json")
    return found.revision


def encoder_path(name: str) -> str:
    """Return the folder of an embedded or tiny encoder, made when needed; any other name as it
    is.
    """
    from loramix.bases.embedded import embedded_folder, made_once

    if name == "tiny-bert":
        from loramix.bases.tiny import save_tiny_encoder

        return str(made_once(name, save_tiny_encoder))
    return str(embedded_folder(name)) if name in _ENCODERS else name


def _contiguous(head: "nn.Module", args: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    """Give the output layer its input in one piece.

    With `logits_to_keep` it would get a slice, which torch multiplies row by row, each with its own
    copy of a frozen
    weight: for SmolLM2-135M that took longer than all layers together.
    """
    return tuple(arg.contiguous() for arg in args)


def _source(name: str) -> str:
    if name in _BASES:
        from loramix.bases.embedded import embedded_folder

        return str(embedded_folder(name))
    return name


def _not_found(name: str, revision: str | None, error: HubError) -> BaseModelError:
    known = base_names()
    wanted = f"'{name}'" if revision is None else f"'{name}' at revision '{revision}'"
    return BaseModelError(
        f"there is no base model {wanted}{did_you_mean(name, known)}: it is none of "
        f"{', '.join(known)}; it is {error}"
    )


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Turn what transformers raises about unreadable files into one line that names the base
    model.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BaseModelError(
            f"base model '{name}' cannot be loaded: {first_line(error)}"
        ) from error
