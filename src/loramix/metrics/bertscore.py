"""BERTScore (Zhang et al. 2020, arXiv:1904.09675) with an encoder by name or folder."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.bases.devices import accelerator
from loramix.errors import BaseModelError, DataError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_TOKENS = 4096  # of a text, for encoders without a limit of their own, such as T5


@lru_cache(maxsize=1)
def bert_scorer(encoder: str) -> "BertScorer":
    """Return BERTScore with an encoder, which stays loaded until another is asked for: a comparison
    asks for one for every table.
    """
    return BertScorer(encoder)


class BertScorer:
    """BERTScore without idf weights and without rescaling, from the token embeddings of bert-score.

    encoder: a model name or a folder.
    layer: the layer, counted from 1, whose output is compared. By default the one of bert-score's
        table for this name, or the last layer of an encoder that the table lacks, as of a folder.
    batch_size: pairs that are encoded at once; it changes speed and memory only.
    Raises BaseModelError if the encoder cannot be loaded or has no such layer, MissingExtraError
    without bert-score.
    """

    def __init__(self, encoder: str, layer: int | None = None, batch_size: int = 32) -> None:
        self._name = Path(encoder).resolve().name if Path(encoder).is_dir() else encoder
        self._batch_size = batch_size
        self._model, self._layer = _load_model(encoder, layer)
        self._tokenizer = _load_tokenizer(encoder, self._model)
        self._unweighted = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id}

    @property
    def identity(self) -> str:
        """Encoder, layer and library versions: with the texts, all that a score depends on."""
        libraries = [f"{name} {version(name)}" for name in ("bert-score", "transformers")]
        return f"{self._name} layer {self._layer} ({', '.join(libraries)})"

    def score(self, generated: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the F1 of each pair: at most 1, and in practice above 0.

        It does not depend on the other pairs. A pair with an empty text, or with one that gives the
        encoder no token, scores 0. Tokens beyond the encoder's positions are left out.
        """
        if len(generated) != len(references):
            raise DataError(
                f"there are {len(generated)} generated texts, but {len(references)} references"
            )
        scores = [0.0] * len(generated)
        pairs = list(zip(generated, references, strict=True))
        filled = [index for index, pair in enumerate(pairs) if all(map(self._has_tokens, pair))]
        filled.sort(key=lambda index: max(map(len, pairs[index])))  # less padding
        for start in range(0, len(filled), self._batch_size):
            batch = filled[start : start + self._batch_size]
            texts: list[str] = []
            for index in batch:
                texts += pairs[index]
            embedded = self._embed(texts)
            for index in batch:
                scores[index] = _f1(*next(embedded), *next(embedded))
        return scores

    def _has_tokens(self, text: str) -> bool:
        """Return whether any token has a weight, without which bert-score fails."""
        if not text.strip():
            return False
        # Some characters leave no token but the special ones.
        tokens = self._tokenizer.encode(text.strip(), add_special_tokens=False, truncation=True)
        return not self._unweighted.issuperset(tokens)

    def _embed(self, texts: list[str]) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield the unit-length embeddings (T, D) of each text's tokens, and their weights (T).

        CLS and SEP have weight 0, all other tokens 1.
        """
        from bert_score.utils import get_bert_embedding

        weights = defaultdict(lambda: 1.0, dict.fromkeys(self._unweighted, 0.0))
        embeddings, mask, weights_BT = get_bert_embedding(
            texts, self._model, self._tokenizer, weights, device=self._model.device
        )
        for row, length in enumerate(mask.sum(1).tolist()):
            tokens_TD = embeddings[row, :length]
            yield (
                tokens_TD / tokens_TD.norm(dim=-1, keepdim=True),
                weights_BT[row, :length].to(tokens_TD.device),
            )


def _f1(
    text_TD: "Tensor", text_weights: "Tensor", reference_TD: "Tensor", reference_weights: "Tensor"
) -> float:
    """Return the F1 of the greedy matching of one pair.

    bert-score pads a batch with similarities of 0, which win over negative ones, so that its scores
    depend on the batch.
    """
    similarity = text_TD @ reference_TD.T  # (tokens of the text, of the reference), cosines
    precision = float(similarity.amax(1) @ text_weights / text_weights.sum())
    recall = float(similarity.amax(0) @ reference_weights / reference_weights.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _load_model(encoder: str, layer: int | None) -> "tuple[PreTrainedModel, int]":
    """Return the encoder up to its layer number `layer`, and that number.

    bert-score's own loader takes every path with "t5" in it for a T5.
    """
    try:
        from bert_score.utils import model2layers
    except ImportError as error:
        raise MissingExtraError("bert-score", "metrics") from error
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(encoder)
        last = config.num_hidden_layers
        chosen = layer if layer is not None else model2layers.get(encoder, last)
        if not 1 <= chosen <= last:
            raise BaseModelError(
                f"encoder '{encoder}' has layers 1 to {last}, but no layer {chosen}"
            )
        config.num_hidden_layers = chosen  # layers above the chosen one would be computed in vain
        model = AutoModel.from_pretrained(encoder, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _not_loaded(encoder, error) from error
    model = model.get_encoder() if config.is_encoder_decoder else model
    return model.eval().to(accelerator()), chosen


def _load_tokenizer(encoder: str, model: "PreTrainedModel") -> "PreTrainedTokenizerBase":
    """Return the encoder's tokenizer, which truncates to the encoder's positions."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise _not_loaded(encoder, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(model))
    return tokenizer


def _positions(model: "PreTrainedModel") -> int:
    """Return the longest text, in tokens, that the encoder has positions for."""
    limit = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(limit - padding - 1)  # RoBERTa counts its positions from there
    return int(limit) if limit > 0 else MOST_TOKENS


def _not_loaded(encoder: str, error: Exception) -> BaseModelError:
    if isinstance(error, BaseModelError):
        return error
    return BaseModelError(
        f"there is no encoder '{encoder}' that could be loaded: {str(error).splitlines()[0]}"
    )
