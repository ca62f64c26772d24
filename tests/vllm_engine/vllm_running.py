"""vLLM over a tiny mixture, in this process; requests arrive while others are answered."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(  # read when vLLM is imported
    VLLM_USE_V2_MODEL_RUNNER="0",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from loramix import MixtureModel
from loramix.serving.vllm.settings import settings

LONGEST = 192  # tokens of a prompt and its answer
BLOCK = 32


@dataclass
class Asked:
    """A request, what it was answered, and how sure the model was of each token."""

    prompt: list[int]
    new: int
    weights: dict[str, float] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def drawn(number: int, seed: int = 0) -> list[Asked]:
    """Return requests of mixed length, a fifth with weights by hand; the same for the same seed."""
    draw = random.Random(seed)
    return [
        Asked(
            [draw.randrange(3, 258) for _ in range(draw.choice((1, 2, 7, 20, 33, 90)))],
            draw.randint(12, 60),
            draw.choice(({"a": 1.0}, {"b": 0.5, "c": -0.5}, {})) if draw.random() < 0.2 else None,
        )
        for _ in range(number)
    ]


@contextmanager
def started(folder: Path, *, eager: bool = True, **more: object) -> Iterator[LLM]:
    """Start vLLM over a mixture, with few blocks for caches."""
    given = {**settings(folder, tokens=LONGEST), "max_num_seqs": 8, "block_size": BLOCK}
    given |= {"num_gpu_blocks_override": 16, "enforce_eager": eager, "disable_log_stats": False}
    llm = LLM(**{**given, **more})
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()


def answer(llm: LLM, asked: Sequence[Asked], *, at_once: int = 8, seed: int = 0) -> None:
    """Answer requests that arrive at random, with at most so many at once."""
    engine, draw = llm.llm_engine, random.Random(seed)
    waiting, running = dict(enumerate(asked)), 0
    while waiting or engine.has_unfinished_requests():
        while waiting and running < at_once and (running == 0 or draw.random() < 0.5):
            number = next(iter(waiting))
            each = waiting.pop(number)
            params = {"temperature": 0, "max_tokens": each.new, "ignore_eos": True, "logprobs": 0}
            engine.add_request(
                str(number),
                {"prompt_token_ids": each.prompt},
                SamplingParams(**params, extra_args=extra(each.weights)),
            )
            running += 1
        for output in engine.step():
            if output.finished:
                running -= 1
                each, found = asked[int(output.request_id)], output.outputs[0]
                each.tokens = list(found.token_ids)
                each.logprobs = [
                    table[token].logprob
                    for table, token in zip(found.logprobs, found.token_ids, strict=True)
                ]


def extra(weights: Mapping[str, float] | None) -> dict[str, object] | None:
    """Return the `extra_args` that carry weights by hand."""
    return None if weights is None else {"loramix": {"weights": dict(weights)}}


def preemptions(llm: LLM) -> int:
    """Return how often a request has lost its cache."""
    return counted(llm, "vllm:num_preemptions")


def counted(llm: LLM, name: str) -> int:
    """Return one of vLLM's own counts."""
    return sum(each.value for each in llm.get_metrics() if each.name == name)


def differences(mixture: MixtureModel, asked: Sequence[Asked]) -> tuple[int, float]:
    """Return how many answers are not those of `MixtureModel.generate`, and how far
    log-probabilities are off in the others.
    """
    return compared(asked, alone(mixture, asked))


def compared(asked: Sequence[Asked], right: Sequence[Asked]) -> tuple[int, float]:
    """Return how many answers are not the right ones, and how far log-probabilities are off in the
    others.
    """
    wrong, worst = 0, 0.0
    for each, other in zip(asked, right, strict=True):
        if each.tokens != other.tokens:
            wrong += 1
            continue
        off = torch.tensor(each.logprobs) - torch.tensor(other.logprobs)
        worst = max(worst, float(off.abs().max()))
    return wrong, worst


@torch.no_grad()
def alone(mixture: MixtureModel, asked: Sequence[Asked]) -> list[Asked]:
    """Return what `MixtureModel.generate` answers to each request by itself."""
    answers = []
    for each in asked:
        ids = torch.tensor([each.prompt])
        found = mixture.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=each.new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            weights=each.weights,
        )
        tokens = found.sequences[0, len(each.prompt) :].tolist()
        logits = torch.cat(found.logits).log_softmax(-1)
        sure = logits[torch.arange(len(tokens)), tokens].tolist()
        answers.append(Asked(each.prompt, each.new, each.weights, tokens, sure))
    return answers
