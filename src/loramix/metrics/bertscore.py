"""BERTScore: similarity of generated and reference text in the space of an encoder (Zhang et al., 2020)."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from loramix.errors import DataError, MissingExtraError


class BertScorer:
    """Scores pairs of texts with the F1 of BERTScore, without rescaling or word weights.

    encoder: a model name or a folder. layer: which layer's output is compared; by default the one that bert-score
    recommends for this encoder, else the last.
    """

    def __init__(self, encoder: str, layer: int | None = None, batch_size: int = 32) -> None:
        try:
            import bert_score
        except ImportError as error:
            raise MissingExtraError("bert-score", "metrics") from error
        from transformers import AutoConfig

        self.encoder, self.batch_size = encoder, batch_size
        self.layer = layer or bert_score.utils.model2layers.get(encoder)
        config = AutoConfig.from_pretrained(encoder)
        self.layer = self.layer or int(config.num_hidden_layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            self._scorer = bert_score.BERTScorer(model_type=encoder, num_layers=self.layer, batch_size=batch_size)
        tokenizer = self._scorer._tokenizer
        # roberta-style encoders keep two positions for themselves
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings - 2)

    @property
    def identity(self) -> str:
        """What a score depends on beside the texts."""
        name = Path(self.encoder).name if Path(self.encoder).is_dir() else self.encoder
        return f"{name} layer {self.layer}, bert-score {version('bert-score')}, transformers {version('transformers')}"

    def score(self, generated: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the F1 of every pair, in order; a pair with an empty text scores 0."""
        if len(generated) != len(references):
            raise DataError(f"there are {len(generated)} generated texts for {len(references)} references")
        pairs = list(zip(generated, references, strict=True))
        full = [index for index, (text, reference) in enumerate(pairs) if text.strip() and reference.strip()]
        scores = [0.0] * len(pairs)
        if full:
            _, _, f1 = self._scorer.score([pairs[index][0] for index in full], [pairs[index][1] for index in full])
            for index, value in zip(full, f1.tolist(), strict=True):
                scores[index] = float(value)
        return scores
