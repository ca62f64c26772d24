"""BLEU and chrF of single texts, by sacrebleu (Post 2018, arXiv:1804.08771)."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loramix.errors import DataError, MissingExtraError
from loramix.metrics.words import TOKENIZER, spaced

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF


def bleu(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the sentence BLEU (0 to 1) of each text.

    This is BLEU-4 (Papineni et al. 2002) with sacrebleu's standard tokens (13a), case kept and
    exponential smoothing. Every character of a script without spaces is a token: in Chinese as in
    sacrebleu's `zh`, and in Japanese unlike `ja-mecab`, which has a dictionary's words. A text of
    fewer than four tokens is scored by the n-grams that it has; an empty text scores 0.
    """
    return _scores(_bleu(), list(map(spaced, generated)), list(map(spaced, references)))


def chrf(generated: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the sentence chrF (0 to 1) of each text.

    This is chrF2 (Popovic 2015): the F-score of character n-grams of up to six, in which recall
    counts twice, case kept and white space left out, so that it needs no words in any script. An
    empty text scores 0.
    """
    return _scores(_chrf(), list(map(_composed, generated)), list(map(_composed, references)))


def bleu_signature() -> str:
    """Return sacrebleu's signature of the settings of `bleu`, and what splits unspaced scripts."""
    return f"{_signature(_bleu())}|norm:NFC|unspaced:{TOKENIZER}"


def chrf_signature() -> str:
    """Return sacrebleu's signature of the settings of `chrf`."""
    return f"{_signature(_chrf())}|norm:NFC"


def _bleu() -> "BLEU":
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise MissingExtraError("sacrebleu", "metrics") from error
    return BLEU(effective_order=True)


def _chrf() -> "CHRF":
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingExtraError("sacrebleu", "metrics") from error
    return CHRF()


def _scores(
    scorer: "BLEU | CHRF", generated: Sequence[str], references: Sequence[str]
) -> list[float]:
    if len(generated) != len(references):
        raise DataError(
            f"there are {len(generated)} generated texts, but {len(references)} references"
        )
    pairs = zip(generated, references, strict=True)
    percent = [float(scorer.sentence_score(text, [reference]).score) for text, reference in pairs]
    return [min(score / 100, 1.0) for score in percent]  # rounding takes equal texts beyond 1


def _signature(scorer: "BLEU | CHRF") -> str:
    scorer.sentence_score("a", ["a"])  # without a text, the number of references is unknown
    return str(scorer.get_signature().format())


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
