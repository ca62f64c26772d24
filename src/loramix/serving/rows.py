"""One sequence that generates: its tokens, how they are chosen, and when they end."""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessorList

from loramix.data.tokens.answers import end_ids
from loramix.data.tokens.template import answer_turn
from loramix.mixture.model import MixtureModel
from loramix.serving.jobs import FinishReason, Job, Piece, Sampling, TokenScore
from loramix.serving.texts import TextStream

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Row:
    """One job's place in a batch.

    tokens: generated so far. processors: what the base's generation config and the sampling make of
    logits, as `generate` has them.
    """

    def __init__(
        self, job: Job, text: TextStream, ends: Sequence[int], processors: LogitsProcessorList
    ) -> None:
        self.job, self.tokens = job, list[int]()
        self.finished: FinishReason | None = None
        self._text, self._ends, self.processors = text, frozenset(ends), processors
        self._generator: torch.Generator | None = None
        if job.sampling.seed is not None:
            self._generator = torch.Generator().manual_seed(job.sampling.seed)

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the likeliest one."""
        return not self.processors and self.job.sampling.temperature == 0

    def choose(self, logits_V: Float[Tensor, " V"], start: Sequence[int]) -> int:
        """Return the next token.

        start: what precedes the generated tokens in the sequence that `generate` would return.
        """
        context = torch.tensor([[*start, *self.tokens]], device=logits_V.device)
        scores_V: Tensor = self.processors(context, logits_V[None].float())[0]
        if self.job.sampling.temperature == 0:
            return int(scores_V.argmax())
        # Drawn on the host: a seed gives the same tokens on every device.
        shares_V = scores_V.softmax(-1).cpu()
        return int(torch.multinomial(shares_V, 1, generator=self._generator))

    def take(self, token: int, logits_V: Float[Tensor, " V"]) -> Piece:
        """Add a token and return what is to be told of it; notes whether the answer ends here."""
        self.tokens.append(token)
        sampling = self.job.sampling
        scores = () if sampling.logprobs is None else (_score(token, logits_V, sampling.logprobs),)
        text, ends = "", token in self._ends
        if not ends:
            text = self._text.add(token)
        full = len(self.tokens) == sampling.max_new_tokens
        if not self._text.stopped and (ends or full):
            text += self._text.finish()
        if ends or self._text.stopped:
            self.finished = "stop"
        elif full:
            self.finished = "length"
        return Piece(text, scores)


class RowMaker:
    """Makes rows of jobs, for one mixture; used in the engine's thread alone."""

    def __init__(self, mixture: MixtureModel) -> None:
        self._base = mixture.base
        self._tokenizer = deepcopy(mixture.tokenizer)  # one is not for several threads
        config = mixture.generation_config
        self._ends = {chat: end_ids(self._tokenizer, config, chat=chat) for chat in self._kinds()}

    def row(self, job: Job) -> Row:
        """Return a row that has generated nothing yet."""
        before = answer_turn(self._tokenizer).before if job.chat else []
        text = TextStream(self._tokenizer, stops=job.sampling.stop, before=before)
        return Row(job, text, self._ends[job.chat], self._processors(job))

    def _kinds(self) -> list[bool]:
        return [False, True] if self._tokenizer.chat_template else [False]

    def _processors(self, job: Job) -> LogitsProcessorList:
        base, device = self._base, self._base.device
        config = _config(base.generation_config, job.sampling)
        start = 1 if base.config.is_encoder_decoder else len(job.ids)
        config.max_length = start + job.sampling.max_new_tokens
        config._eos_token_tensor = torch.tensor(self._ends[job.chat], device=device)
        made: LogitsProcessorList = base._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=start,
            encoder_input_ids=torch.tensor([job.ids], device=device),
            device=device,
        )
        return made


def _config(base: "GenerationConfig", sampling: Sampling) -> "GenerationConfig":
    """Return the base's generation config with what a request says of sampling.

    Its own temperature, top_p and top_k do not hold: a request that names none gets OpenAI's.
    """
    config = deepcopy(base)
    config.do_sample = sampling.temperature > 0
    config.temperature = sampling.temperature if config.do_sample else 1.0
    config.top_p, config.top_k = sampling.top_p, 0
    config.num_beams = 1
    return config


def _score(token: int, logits_V: Float[Tensor, " V"], alternatives: int) -> TokenScore:
    logprobs_V = logits_V.float().log_softmax(-1)
    top = logprobs_V.topk(alternatives) if alternatives else None
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True) if top else ()
    return TokenScore(token, float(logprobs_V[token]), tuple(pairs))
