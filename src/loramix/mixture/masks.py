"""Which tokens of a call are real, which belong to the prompt, and which to the same sample.

All of it is read from the arguments that a base model is called with.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache

from loramix.errors import MixtureError
from loramix.mixture.context import segment_starts
from loramix.mixture.state import current

Arguments = dict[str, object]

CACHES = ("past_key_values", "cache_params")  # the second is that of state-space models


def cache_of(arguments: Mapping[str, object]) -> object | None:
    """Return the cache among the arguments or outputs of a call."""
    for name in CACHES:
        if arguments.get(name) is not None:
            return arguments[name]
    return None


def cache_length(cache: object) -> int | Tensor:
    """Return the number of tokens in a cache.

    Of a static cache it is a tensor, as compiled code must not depend on its value.
    """
    if not isinstance(cache, Cache):  # none, or xLSTM's, which has no length
        return 0
    try:
        length: int | Tensor = cache.get_seq_length()
    except ValueError:  # of a cache without attention layers; see `loramix.mixture.hooks._begins`
        return 0
    return length


def token_shape(arguments: Arguments) -> tuple[int, int]:
    """Return the (rows, tokens) of a stack's own input."""
    tokens = _tokens(arguments)
    return tokens.shape[0], tokens.shape[1]


def valid_tokens(arguments: Arguments) -> Bool[Tensor, "B T"]:
    """Return which tokens of the stack's own input are real: all, if it has no attention mask."""
    tokens, mask = _tokens(arguments), arguments.get("attention_mask")
    rows, length, past = len(tokens), tokens.shape[1], cache_length(cache_of(arguments))
    if isinstance(mask, dict):  # one mask for each kind of attention layer
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=tokens.device)
    if not isinstance(mask, Tensor):
        raise MixtureError(
            f"a gate cannot read an attention mask of type {type(mask).__name__}; "
            "pass a (B, T) tensor"
        )
    if not torch.compiler.is_compiling() and mask.shape[-1] < past + length:
        raise MixtureError(
            f"the attention mask covers {mask.shape[-1]} tokens, but {int(past)} lie in the cache "
            f"and {length} are new"
        )
    places_T = torch.arange(length, device=mask.device) + past
    if mask.dim() == 2:
        return mask[:, places_T].bool()
    allowed_BQK = _allowed(mask[:, 0].expand(-1, length, -1))
    index_BQ1 = places_T[None, :, None].expand(len(allowed_BQK), -1, 1)
    return allowed_BQK.gather(-1, index_BQ1)[..., 0].expand(rows, -1)  # may it attend to itself?


def last_query(mask: Tensor) -> Bool[Tensor, "B S"]:
    """Return a (B, S) mask as booleans; of a (B, 1, Q, S) one, the keys of its last query."""
    return mask.bool() if mask.dim() == 2 else _allowed(mask[:, 0, -1])


def prompt_tokens(
    arguments: Arguments,
    valid_BT: Bool[Tensor, "B T"],
    segments_BT: Int[Tensor, "B T"] | None,
) -> Bool[Tensor, "B T"]:
    """Return which tokens of a decoder-only model's input are the prompt that its gates read.

    In this order: `prompt_mask`; the lengths of `MixtureModel.reading`; what precedes the first
    label that counts; in generation, the prompt; else every token.

    Raises MixtureError if labels leave a row without any prompt.
    """
    prompt_mask, labels, state = arguments["prompt_mask"], arguments.get("labels"), current()
    if isinstance(prompt_mask, Tensor):
        return valid_BT & prompt_mask.bool()
    if state.prompt_lengths is not None:
        return _first_tokens(valid_BT, state.prompt_lengths)
    if isinstance(labels, Tensor):
        readable_BT = valid_BT & before_labels(labels, valid_BT.shape[1], segments_BT)
        _check_prompts(readable_BT, valid_BT, segments_BT)
        return readable_BT
    if state.prompt_width is not None:  # without a cache, every step has the answer so far
        places_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
        return valid_BT & (places_T < state.prompt_width)
    return valid_BT


def before_labels(
    labels: Int[Tensor, "B L"], tokens: int, segments_BT: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T"]:
    """Mark what precedes the first label that counts, in each row or packed sample.

    labels: may cover the last L of the `tokens` columns alone.
    """
    missing = tokens - labels.shape[1]
    if missing < 0:
        raise MixtureError(f"there are {labels.shape[1]} labels for {tokens} tokens")
    counted_BT = nn.functional.pad(labels != -100, (missing, 0))
    so_far_BT = counted_BT.cumsum(1)
    if segments_BT is None:
        return so_far_BT == 0
    earlier_BT = so_far_BT - counted_BT.long()  # labels before this token, in the whole row
    return so_far_BT == earlier_BT.gather(1, segment_starts(segments_BT))


def segments(
    arguments: Arguments, valid_BT: Bool[Tensor, "B T"], stack: nn.Module
) -> Int[Tensor, "B T"] | None:
    """Return the number of each token's sample in its row; None if every row is one sample.

    Rows hold several samples where `cu_seq_lens_q` says so, where a 4-dimensional mask keeps a
    token from the one before it, or where `position_ids` start again and there is no mask: the
    rule by which transformers keeps such samples apart.
    """
    begins_BT = _sample_begins(arguments, valid_BT)
    if begins_BT is None or torch.compiler.is_compiling():
        return None
    inner_BT = begins_BT & valid_BT & valid_BT.roll(1, dims=1)
    inner_BT[:, 0] = False
    if not inner_BT.any():
        return None
    if arguments.get("attention_mask") is None and "cu_seq_lens_q" not in arguments:
        _check_separation(arguments, stack)
    return inner_BT.cumsum(1)


def _sample_begins(arguments: Arguments, valid_BT: Tensor) -> Bool[Tensor, "B T"] | None:
    """Mark the tokens that begin a sample, or padding; None if nothing tells."""
    mask, ends, positions = (
        arguments.get(name) for name in ("attention_mask", "cu_seq_lens_q", "position_ids")
    )
    rows, tokens = valid_BT.shape
    if isinstance(ends, Tensor):
        begins_T = torch.zeros(rows * tokens, dtype=torch.bool, device=valid_BT.device)
        begins_T[ends[:-1].long()] = True
        return begins_T.view(rows, tokens)
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-2:] == (tokens, tokens):
        to_last_BT = _allowed(mask[:, 0]).diagonal(-1, dim1=1, dim2=2)
        return nn.functional.pad(~to_last_BT, (1, 0)).expand(rows, -1)
    if mask is None and isinstance(positions, Tensor) and positions.dim() == 2:
        steps_BT = positions.diff(dim=1, prepend=positions[:, :1] - 1)
        return (steps_BT != 1).expand(rows, -1)
    return None


def _check_separation(arguments: Arguments, stack: nn.Module) -> None:
    """Raise MixtureError if the base itself lets packed samples attend to each other."""
    config = stack.config
    flash = "flash" in str(getattr(config, "_attn_implementation", ""))  # reads position_ids
    uses_cache = arguments.get("use_cache")
    uses_cache = getattr(config, "use_cache", False) if uses_cache is None else uses_cache
    if uses_cache and not flash:
        raise MixtureError(
            "position_ids start again within a row, so it holds several samples, but with a cache "
            "the base lets them attend to each other; pass use_cache=False"
        )


def _check_prompts(
    readable_BT: Tensor, valid_BT: Tensor, segments_BT: Int[Tensor, "B T"] | None
) -> None:
    """Raise MixtureError if a row, or a packed sample, has no prompt for its gates to read."""
    if torch.compiler.is_compiling():
        return
    if segments_BT is None:
        bare = (valid_BT.any(1) & ~readable_BT.any(1)).nonzero()[:, 0]
    else:
        places_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
        begins_BT = segment_starts(segments_BT) == places_T
        bare = (begins_BT & valid_BT & ~readable_BT).nonzero()[:, 0]
    if len(bare):
        raise MixtureError(
            f"row {int(bare[0])} has labels from its first token on, so there is no prompt for its "
            "gates to read: in training they would decide the same for every text. Set the labels "
            "of prompts to -100, or pass prompt_mask. For plain text without prompts, build the "
            "mixture with GateConfig(context='running') or 'token'"
        )


def _first_tokens(valid_BT: Bool[Tensor, "B T"], lengths: Int[Tensor, " _"]) -> Bool[Tensor, "B T"]:
    """Mark the first real tokens of every row, as many as `lengths` says for it, or for all."""
    if len(lengths) not in (1, len(valid_BT)):
        raise MixtureError(
            f"there are prompt lengths for {len(lengths)} rows, but the call has {len(valid_BT)}"
        )
    return valid_BT & (valid_BT.cumsum(1) <= lengths.to(valid_BT.device)[:, None])


def _allowed(mask: Tensor) -> Tensor:
    """Return an attention mask as booleans: additive ones are 0 where a key may be read."""
    return mask if mask.dtype == torch.bool else mask >= 0


def _tokens(arguments: Arguments) -> Tensor:
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise MixtureError("a mixture needs input_ids or inputs_embeds")
    return tokens
