"""Scoring by lm-eval, the harness of EleutherAI, as its model "loramix":

    lm_eval --model loramix --model_args pretrained=FOLDER --tasks TASK

Versions of lm-eval up to 0.4.13 do not look for models in other packages. There, type
`python -m loramix.harness` for `lm_eval`, with the same arguments.

The harness scores a context and its continuation in one call and passes no labels, so the gates are
told by `MixtureModel.reading` where the context ends.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from loramix.data.tokens.answers import end_ids
from loramix.errors import MissingExtraError, MixtureError
from loramix.mixture.model import MixtureModel

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    missing = MissingExtraError("lm-eval", "harness")
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise missing from error

# What is scored: the two texts, and the tokens of the context and of the continuation.
Request = tuple[object, list[int], list[int]]
Score = tuple[float, bool]  # log-likelihood, and whether greedy decoding would have said it
# Settings of HFLM that load other things, or load them in another way.
_REFUSED = ("autogptq", "delta", "gguf_file", "gptqmodel", "parallelize", "peft", "tp_plan")


class MixtureLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model of transformers, HFLM, on a mixture."""

    def __init__(
        self,
        pretrained: str,
        *,
        weights: str | Mapping[str, float] | None = None,
        base: str | None = None,
        revision: str | None = None,
        dtype: str | None = "auto",
        **settings: object,
    ) -> None:
        """Load the mixture in a folder or of a Hub id.

        weights: replace the gates' decisions: an expert's name, `haiku:0.7+title:0.3`, or a
            mapping. base: replaces the recorded base model. settings: those of HFLM.
        """
        for name in _REFUSED:
            if settings.get(name):
                raise MixtureError(
                    f"lm-eval's setting '{name}' does not apply to a mixture, which brings its "
                    "adapters and names its base; base=NAME replaces the base"
                )
        self._mixture = MixtureModel.from_pretrained(
            pretrained, base, revision=revision, dtype=str(dtype or "auto")
        )
        self._weights = fixed_weights(weights, self._mixture.expert_names)
        if self._weights is None and self._mixture.gate_config.context == "reference":
            raise MixtureError(
                "the reference gate averages over all that is scored, padding included, so its "
                "scores would depend on the batch; give weights, or train another gate"
            )
        self._prompt_length: int | None = None
        super().__init__(pretrained, dtype=dtype, **settings)
        self.revision = revision  # which HFLM reports

    def _get_config(self, pretrained: str, **settings: object) -> None:
        self._config = self._mixture.config

    def _create_tokenizer(self, pretrained: str, tokenizer: object, **settings: object) -> None:
        super()._create_tokenizer(pretrained, tokenizer or self._mixture.tokenizer, **settings)

    def _create_model(self, **settings: object) -> None:
        self._model = self._mixture

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        """Score continuations; all rows of a batch have contexts of one length."""
        by_length: defaultdict[int | None, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            by_length[self._context_length(request)].append(place)
        scores: dict[int, Score] = {}
        for length, places in by_length.items():
            chosen = [requests[place] for place in places]
            with self._reading(length):
                found = super()._loglikelihood_tokens(
                    chosen, disable_tqdm, override_bs and min(override_bs, len(chosen))
                )
            scores |= dict(zip(places, found, strict=True))
        return [scores[place] for place in range(len(requests))]

    def _context_length(self, request: Request) -> int | None:
        """Return how many tokens of a context the model sees; None where no gate needs to know."""
        decided = self._weights is not None or self._mixture.gate_config.context != "prompt"
        if decided or self.backend != "causal":
            return None
        _, context, continuation = request
        cut = max(0, len(context) + len(continuation) - (self.max_length + 1))
        length: int = len(context) - cut
        return length

    @contextmanager
    def _reading(self, length: int | None) -> Iterator[None]:
        self._prompt_length = length
        try:
            yield
        finally:
            self._prompt_length = None

    def _model_call(self, *args: object, **inputs: object) -> Tensor:
        with ExitStack() as stack:
            if self._prompt_length is not None:
                stack.enter_context(self._mixture.reading(self._prompt_length))
            if self._weights is not None:
                stack.enter_context(self._mixture.fixed(self._weights))
            logits: Tensor = super()._model_call(*args, **inputs)
        return logits

    def _model_generate(self, *args: object, **settings: object) -> Tensor:
        weights = {} if self._weights is None else {"weights": self._weights}
        chat = self._mixture.prompting.chat
        ends = end_ids(self.tokenizer, self._mixture.generation_config, chat=chat)
        settings = {"eos_token_id": ends or None, **settings}
        tokens: Tensor = super()._model_generate(*args, **settings, **weights)
        return tokens


def fixed_weights(
    text: str | Mapping[str, float] | None, experts: Sequence[str]
) -> dict[str, float] | None:
    """Return the weights that the harness was given, by expert; None lets the gates decide.

    text: as `MixtureLM` takes them. Raises MixtureError if it does not read as weights.
    """
    if text is None or isinstance(text, Mapping):
        return None if text is None else {name: float(weight) for name, weight in text.items()}
    if text in experts:
        return {text: 1.0}
    weights = {}
    for part in text.split("+"):
        name, _, weight = part.rpartition(":")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise MixtureError(
                f"'{text}' does not read as weights; give an expert's name, or weights such as "
                f"{experts[0]}:0.7; the experts are {list(experts)}"
            ) from None
    return weights


if "loramix" not in model_registry:  # else lm-eval has found this module by its entry point
    model_registry.register("loramix", target=MixtureLM)

if __name__ == "__main__":
    cli_evaluate()
