"""Gates from the adapters alone: each text gets the expert for which all layers together speak.

An adapter shows in its update which contexts it was made for, but a single layer says little and
says it on a scale of its own. So, over texts that are about nothing in particular, which the base
itself writes,

    r_le(c) = (Σ_l + λ)⁻¹ (B A)ᵀ(B A) m_l · (c - m_l)
    S_e     = mean over layers of r_le / std(r_le)

where r says how far expert e's update in layer l prefers context c to the mean m, whitened, and S
is the evidence of all layers for a text. Every gate then learns to tell S from its own layer's
context, by ridge regression on these texts.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from loramix.data.tokens.batches import Encoded, generation_batch
from loramix.data.tokens.special_tokens import token_ids
from loramix.data.tokens.template import PROBE, one_turn, rendered
from loramix.mixture.groups import in_decoder
from loramix.mixture.means import reset, write_linear
from loramix.mixture.model import MixtureModel
from loramix.mixture.prototypes import check_start
from loramix.mixture.readings import contexts_of
from loramix.storage.experts import LowRank

SHARPNESS = 4.0
RIDGE = 0.1  # of the mean variance of a context, and of the mean similarity of two
WRITTEN, RANDOM, LENGTH = 256, 160, 24  # texts by the base, of random tokens; tokens in each
_BATCH = 16


@torch.no_grad()
def from_adapters(
    mixture: MixtureModel,
    *,
    sharpness: float = SHARPNESS,
    seed: int = 0,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Set every gate to prefer the expert for which the adapters' own updates speak.

    sharpness: the score, in nats, of a text whose evidence lies one standard deviation above that
        of neutral texts. seed: of these. each: called after every batch of them.

    Raises MixtureError if gates have fewer hidden units than experts, or are reference gates.
    """
    check_start(mixture, "prototype")
    contexts = _neutral_contexts(mixture, seed, each)
    evidence_NE = _evidence(mixture, contexts)
    for reader, gate in mixture.gates.items():
        weights_ED = _regressed(contexts[reader], evidence_NE)
        mean_D = contexts[reader].mean(0)
        reset(gate)
        for expert, weight_D in enumerate(sharpness * gate.config.temperature * weights_ED):
            bias = -(weight_D @ mean_D)
            place = gate.prior.device
            write_linear(gate, expert, expert, weight_D.to(place), bias.to(place))
    mixture.prototypes = None


def batches() -> int:
    """Return how many batches of neutral texts there are."""
    return -(-WRITTEN // _BATCH) + -(-RANDOM // _BATCH)


def _evidence(
    mixture: MixtureModel, contexts: dict[str, Float[Tensor, "N _"]]
) -> Float[Tensor, "N E"]:
    """Return the evidence of all layers for each expert, standardised over the texts."""
    texts = len(next(iter(contexts.values())))
    sums_NE = torch.zeros(texts, len(mixture.experts))
    layers_E = torch.zeros(len(mixture.experts))
    for reader, context_ND in contexts.items():
        if in_decoder(
            mixture.base, reader
        ):  # it may read what the encoder wrote: no update acts there
            continue
        centred_ND = context_ND - context_ND.mean(0)
        for index, expert in enumerate(mixture.experts):
            update = expert.updates.get(reader)
            if update is not None:
                preferred_D = _preferred(update, context_ND.mean(0))
                score_N = centred_ND @ _whitened(centred_ND, preferred_D)
                sums_NE[:, index] += score_N / score_N.std().clamp(min=1e-12)
                layers_E[index] += 1
    return _standardised(sums_NE / layers_E.clamp(min=1))


def _preferred(update: LowRank, mean_D: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """Return (B A)ᵀ(B A) m, along which |B A c|² grows fastest at m."""
    down_RD = update.down_RD.float()
    middle_RR = update.up_OR.float().T @ update.up_OR.float()
    preferred = down_RD.T @ (middle_RR @ (down_RD @ mean_D))
    direction: Tensor = preferred / preferred.norm().clamp(min=1e-12)
    return direction


def _whitened(
    centred_ND: Float[Tensor, "N D"], direction_D: Float[Tensor, " D"]
) -> Float[Tensor, " D"]:
    """Return (Σ + λ)⁻¹ v for the covariance Σ of the contexts, by way of an N × N matrix."""
    texts = len(centred_ND)
    ridge = RIDGE * centred_ND.square().mean()
    gram_NN = centred_ND @ centred_ND.T / texts + ridge * torch.eye(texts)
    inner_N = torch.linalg.solve(gram_NN, centred_ND @ direction_D)
    whitened: Tensor = (direction_D - centred_ND.T @ inner_N / texts) / ridge
    return whitened


def _regressed(
    context_ND: Float[Tensor, "N D"], evidence_NE: Float[Tensor, "N E"]
) -> Float[Tensor, "E D"]:
    """Return the weights that tell the evidence from a context, scaled to unit variance."""
    centred_ND = context_ND - context_ND.mean(0)
    similar_NN = centred_ND @ centred_ND.T
    ridge = RIDGE * similar_NN.diagonal().mean()
    inner_NE = torch.linalg.solve(similar_NN + ridge * torch.eye(len(centred_ND)), evidence_NE)
    weights_ED: Tensor = inner_NE.T @ centred_ND
    spread_E = (centred_ND @ weights_ED.T).std(0)
    return weights_ED / spread_E.clamp(min=1e-12)[:, None]


def _standardised(values_NE: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
    return (values_NE - values_NE.mean(0)) / values_NE.std(0).clamp(min=1e-12)


def _neutral_contexts(
    mixture: MixtureModel, seed: int, each: Callable[[], object]
) -> dict[str, Float[Tensor, "N _"]]:
    """Return what every gate reads of texts that are about nothing in particular, in float32."""
    found: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for texts in _neutral_texts(mixture):
            inputs = _batch(mixture, texts)
            with contexts_of(mixture, inputs, expert=None) as contexts:
                mixture.weights(**inputs)
            for reader in mixture.gates:
                found.setdefault(reader, []).append(contexts[reader].cpu())
            each()
    return {reader: torch.cat(rows).float().clone() for reader, rows in found.items()}


def _neutral_texts(mixture: MixtureModel) -> Iterator[list[str]]:
    """Yield batches of texts: what the base writes by itself, and random tokens."""
    tokenizer = mixture.tokenizer
    written = 0 if mixture.config.is_encoder_decoder else WRITTEN
    for first in range(0, written, _BATCH):
        start = _starts(mixture)[first // _BATCH % len(_starts(mixture))]
        ids_BT = torch.tensor([start] * min(_BATCH, written - first), device=mixture.device)
        with mixture.fixed({}):
            tokens = mixture.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                do_sample=True,
                top_k=0,
                top_p=0.95,
                max_new_tokens=LENGTH,
                pad_token_id=tokenizer.pad_token_id,
            )
        yield _texts(mixture, tokens[:, ids_BT.shape[1] :])
    for first in range(0, RANDOM, _BATCH):
        size = (min(_BATCH, RANDOM - first), LENGTH)
        yield _texts(mixture, torch.randint(len(tokenizer), size))


def _starts(mixture: MixtureModel) -> list[list[int]]:
    """Return the tokens after which the base is let write: at the start of a text and, where there
    is a chat template, of a user's turn.
    """
    tokenizer = mixture.tokenizer
    begin = tokenizer.bos_token_id
    starts = [[tokenizer.eos_token_id if begin is None else begin]]
    if tokenizer.chat_template:
        opening, _, _ = rendered(tokenizer, one_turn(PROBE), prompt=False).partition(PROBE)
        starts.append(token_ids(tokenizer, opening, add_special_tokens=False))
    return [start for start in starts if start]


def _batch(mixture: MixtureModel, texts: list[str]) -> dict[str, Tensor]:
    """Return texts as prompts, in one batch."""
    rows = [Encoded(mixture.text_inputs(text)["input_ids"][0].tolist(), []) for text in texts]
    batch = generation_batch(mixture.tokenizer, rows, not mixture.config.is_encoder_decoder)
    return {key: value.to(mixture.device) for key, value in batch.items()}


def _texts(mixture: MixtureModel, tokens: Tensor) -> list[str]:
    decoded = mixture.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text for text in map(str.strip, decoded) if text]
