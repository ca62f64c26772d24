"""From a request's body to jobs: which weights, which prompt, and whether it is within limits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

from loramix.data.conversations import Conversation, Message
from loramix.data.tokens.encoding import prompt_ids
from loramix.errors import LoramixError, did_you_mean
from loramix.mixture.inputs import asked
from loramix.mixture.model import MixtureModel
from loramix.mixture.weights import row_of
from loramix.serving.bodies import ChatBody, ChatMessage, CompletionBody
from loramix.serving.jobs import Limits, Sampling, ServingError

COMPLETION_TOKENS = 16  # of a completion that names no limit, as OpenAI has it


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids; chat: whether the answer is a turn of the chat template."""

    ids: list[int]
    chat: bool


class Models:
    """The names under which a mixture, its experts alone and its base are served."""

    def __init__(self, name: str, experts: Sequence[str]) -> None:
        self.name = name
        self._weights: dict[str, Mapping[str, float] | None] = {f"{name}:base": {}}
        self._weights |= {f"{name}:{expert}": {expert: 1.0} for expert in experts}
        self._weights = {name: None, **self._weights}

    @property
    def names(self) -> list[str]:
        """All names, the mixture's first."""
        return list(self._weights)

    def weights(
        self, model: str, by_hand: Mapping[str, float] | None
    ) -> Mapping[str, float] | None:
        """Return the weights to answer at; None where the gates decide."""
        if model not in self._weights:
            raise ServingError(
                f"there is no model '{model}'{did_you_mean(model, self.names)}; "
                f"the models are {self.names}",
                status=404,
                code="model_not_found",
                param="model",
            )
        if by_hand is None:
            return self._weights[model]
        if model != self.name:
            raise ServingError(
                f"'{model}' has weights of its own; set weights by hand for '{self.name}'",
                param="loramix.weights",
            )
        return by_hand


class Asking:
    """Makes jobs' prompts, weights and sampling of bodies; used in the server's thread alone."""

    def __init__(self, mixture: MixtureModel, models: Models, limits: Limits) -> None:
        self._mixture, self._models, self._limits = mixture, models, limits
        self._tokenizer = deepcopy(mixture.tokenizer)  # one is not for several threads
        self._causal = not mixture.config.is_encoder_decoder
        self._context = _context_length(mixture) if self._causal else None
        self._vocabulary = mixture.base.get_input_embeddings().num_embeddings

    @property
    def chats(self) -> bool:
        """Whether conversations of several turns can be asked."""
        return bool(self._tokenizer.chat_template)

    def weights(self, body: ChatBody | CompletionBody) -> Mapping[str, float] | None:
        """Return the weights to answer a request at; None where the gates decide."""
        weights = self._models.weights(body.model, body.loramix.weights)
        if weights is not None:
            with _as_refusal("loramix.weights"):
                row_of(weights, self._mixture.expert_names)
        return weights

    def completion_prompts(self, body: CompletionBody) -> list[Prompt]:
        """Return the prompts of a completion: texts read as by `loramix generate`, ids as given."""
        prompts = body.prompts
        if not prompts:
            raise ServingError("there is no prompt in the list", param="prompt")
        answers = len(prompts) * (body.n or 1)
        if answers > self._limits.waiting:
            raise ServingError(
                f"{answers} answers were asked for at once; the limit of this server is "
                f"{self._limits.waiting}",
                param="prompt",
            )
        return [self._prompt(each, body.loramix.task) for each in prompts]

    def chat_prompt(self, body: ChatBody) -> Prompt:
        """Return the prompt of a conversation."""
        text = self.conversation(body.messages)
        return self._prompt(text, body.loramix.task)

    def conversation(self, messages: Sequence[ChatMessage]) -> str | Conversation:
        """Return messages as a conversation or, without a chat template, the only one's text."""
        if self.chats:
            turns: list[Message] = [{"role": each.role, "content": each.text} for each in messages]
            return Conversation(turns)
        if len(messages) > 1 or messages[0].role != "user":
            raise ServingError(
                "this model's tokenizer has no chat template; send one user message, or use "
                "/v1/completions",
                param="messages",
            )
        return messages[0].text

    def explained(self, text: str | Conversation, task: str | None) -> None:
        """Raise ServingError unless the routing of this prompt can be explained."""
        self._prompt(text, task)

    def token_text(self, token: int) -> str:
        """Return what a token looks like by itself."""
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    def sampling(self, body: ChatBody | CompletionBody, prompt: Prompt) -> Sampling:
        """Return how tokens are chosen; raises ServingError if too many are asked for."""
        if isinstance(body, ChatBody):
            asked_for = body.max_completion_tokens or body.max_tokens
            logprobs = (body.top_logprobs or 0) if body.logprobs else None
        else:
            asked_for, logprobs = body.max_tokens or COMPLETION_TOKENS, body.logprobs
        return Sampling(
            max_new_tokens=self._new_tokens(asked_for, len(prompt.ids)),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stops,
            logprobs=logprobs,
        )

    def _prompt(self, given: str | list[int] | Conversation, task: str | None) -> Prompt:
        if isinstance(given, list):
            ids, chat = given, False
            if any(not 0 <= each < self._vocabulary for each in ids):
                raise ServingError(
                    f"token ids are from 0 to {self._vocabulary - 1}", param="prompt"
                )
        else:
            prompting = self._mixture.prompting
            chat = prompting.chat or isinstance(given, Conversation)
            with _as_refusal("messages" if isinstance(given, Conversation) else "prompt"):
                text = asked(self._tokenizer, prompting, given, task)
                ids = prompt_ids(self._tokenizer, text, causal=self._causal, chat=chat)
        if not ids:
            raise ServingError("the prompt has no tokens", param="prompt")
        if len(ids) > self._limits.prompt_tokens:
            raise ServingError(
                f"the prompt has {len(ids)} tokens; the limit of this server is "
                f"{self._limits.prompt_tokens}",
                code="context_length_exceeded",
            )
        return Prompt(ids, chat)

    def _new_tokens(self, asked_for: int | None, prompt: int) -> int:
        """Return the most tokens of an answer: as asked for, or what limits leave."""
        room = self._limits.new_tokens
        if asked_for is not None and asked_for > room:
            raise ServingError(
                f"{asked_for} new tokens were asked for; the limit of this server is {room}",
                param="max_tokens",
            )
        if self._context is not None:
            room = min(room, self._context - prompt)
            if (asked_for or 1) > room:
                raise ServingError(
                    f"this model's context has {self._context} tokens; the prompt has {prompt} and "
                    f"the answer may have {asked_for or 1}",
                    code="context_length_exceeded",
                )
        return asked_for or room


@contextmanager
def _as_refusal(param: str) -> Iterator[None]:
    """Turn what the package refuses into a refusal of the request."""
    try:
        yield
    except ServingError:
        raise
    except LoramixError as error:
        raise ServingError(str(error), param=param) from error


def _context_length(mixture: MixtureModel) -> int | None:
    """Return how many tokens the base can tell apart; None if it says nothing of that."""
    length = getattr(mixture.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
