"""What a base can do in the engine, tried on two short prompts before anything is served."""

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.errors import MixtureError
from loramix.mixture.model import MixtureModel
from loramix.serving.batch import Passes
from loramix.serving.caches import joinable
from loramix.serving.jobs import Job, Sampling
from loramix.serving.rows import Row, RowMaker

TOLERANCE = 1e-3  # of the largest logit; a wrong place of a token changes logits by far more
_SHORT, _LONG = [1, 2], [1, 2, 3, 4, 5]


@torch.inference_mode()
def pads(mixture: MixtureModel, passes: Passes, maker: RowMaker) -> bool:
    """Return whether a row answers the same alone and beside a longer one.

    It does not where a base counts places by the columns of its cache, or keeps a window or a sum
    of them. Such rows then generate side by side, in batches of one length each.

    Raises MixtureError if the engine's passes are not those of `generate`.
    """
    short, first_1V = passes.begin([_row(maker, _SHORT)])
    token_11 = first_1V.argmax(-1, keepdim=True)
    alone_1V = passes.go_on(short, token_11)
    _check(mixture, first_1V, alone_1V)
    if not joinable(short.cache):
        return False
    longer, next_1V = passes.begin([_row(maker, _LONG)])
    passes.go_on(longer, next_1V.argmax(-1, keepdim=True))
    again, _ = passes.begin([_row(maker, _SHORT)])
    longer.join(again)
    beside_2V = passes.go_on(longer, token_11.expand(2, 1))
    return _same(beside_2V[1:], alone_1V)


def _check(
    mixture: MixtureModel, first_1V: Float[Tensor, "1 V"], second_1V: Float[Tensor, "1 V"]
) -> None:
    ids = torch.tensor([_SHORT], device=mixture.device)
    output = mixture.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        num_beams=1,
        fold=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert not isinstance(output, Tensor)
    logits: tuple[Tensor, ...] = output.logits
    same = _same(first_1V, logits[0])
    likeliest = first_1V.argmax(-1).tolist()
    start = 1 if mixture.config.is_encoder_decoder else ids.shape[1]
    if same and output.sequences[0, start : start + 1].tolist() == likeliest:
        same = _same(second_1V, logits[1])
    if not same:
        raise MixtureError(
            "the engine's passes through this base are not those of `generate`, so its answers "
            "would be others; use mixture.generate"
        )


def _row(maker: RowMaker, ids: list[int]) -> Row:
    return maker.row(Job(ids, Sampling(2, temperature=0.0), lambda event: None))


def _same(left_BV: Tensor, right_BV: Tensor) -> bool:
    left_BV, right_BV = left_BV.float(), right_BV.float()
    eps = torch.finfo(right_BV.dtype).eps
    scale = right_BV.abs().max() * max(TOLERANCE, 8 * eps)
    return bool((left_BV - right_BV).abs().max() <= scale)
