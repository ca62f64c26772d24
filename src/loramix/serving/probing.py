"""Whether rows of different lengths can share a cache of this base, tried on two short prompts."""

import torch

from loramix.errors import MixtureError
from loramix.serving.batch import Passes
from loramix.serving.caches import joinable
from loramix.serving.jobs import Job, Sampling
from loramix.serving.rows import Row, RowMaker

TOLERANCE = 1e-3  # relative to the largest logit; a wrong position moves logits by far more


@torch.inference_mode()
def pads(passes: Passes, maker: RowMaker) -> bool:
    """Return whether a row answers the same alone and beside a longer one.

    It does not where a base counts positions by the columns of its cache, or keeps a window or a
    sum of them. Such rows then generate side by side, in batches of one length each.

    Raises MixtureError if the base keeps no cache that could be passed on.
    """

    def row(length: int) -> Row:
        ids = list(range(1, length + 1))
        return maker.row(Job(ids, Sampling(2, temperature=0.0), lambda event: None))

    short, _ = passes.begin([row(2)])
    if short.cache is None:
        raise MixtureError("this base keeps no cache of keys and values, so it cannot be served")
    if not joinable(short.cache):
        return False
    alone_1V = passes.go_on(short, _one(1, passes))
    longer, _ = passes.begin([row(5)])
    again, _ = passes.begin([row(2)])
    passes.go_on(longer, _one(1, passes))
    longer.join(again)
    beside_BV = passes.go_on(longer, _one(2, passes))
    difference = (beside_BV[1] - alone_1V[0]).abs().max()
    scale = alone_1V.abs().max()
    return bool(difference <= scale * max(TOLERANCE, 8 * torch.finfo(scale.dtype).eps))


def _one(rows: int, passes: Passes) -> torch.Tensor:
    return torch.ones(rows, 1, dtype=torch.long, device=passes.device)
