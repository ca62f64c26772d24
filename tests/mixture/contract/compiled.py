"""Compiles mixtures without graph breaks and compares them with themselves as they are: scores
alone or, with `whole`, fixed weights, gradients, cached steps and generation too.

python tests/mixture/contract/compiled.py whole inductor llama-prompt llama-token
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from cases import Case, Experts
from conftest import close, save_expert, tokens
from transformers import CompileConfig, StaticCache
from transformers.cache_utils import EncoderDecoderCache

from loramix import MixtureModel


def compiled(mixture: MixtureModel, backend: str) -> MixtureModel:
    torch._dynamo.reset()
    return torch.compile(mixture, fullgraph=True, backend=backend)


def check_scores(case: Case, experts: Experts, backend: str) -> None:
    mixture, given = case.build(experts), scored(case)
    with torch.no_grad():
        close(compiled(mixture, backend)(**given).logits, mixture(**given).logits)


def check_whole(case: Case, experts: Experts, backend: str) -> None:
    mixture, ids = case.build(experts), tokens(2, 6)
    fast, given = compiled(mixture, backend), scored(case)
    with torch.no_grad():
        close(fast(**given).logits, mixture(**given).logits)
        with mixture.fixed({"a": 0.5}):
            close(fast(**given).logits, mixture(**given).logits)
    if case.shape != "gpt2":  # transformers logs a warning about its loss, which cannot be compiled
        plain, compiled_too = (gradients(mixture, model, ids) for model in (mixture, fast))
        torch.testing.assert_close(plain, compiled_too, atol=1e-4, rtol=1e-3)
    if case.context != "reference":
        close(cached_steps(mixture, mixture, ids), cached_steps(mixture, fast, ids))
        for rows in (1, 2):
            plain = generated(mixture, ids[:rows], None)
            close(generated(mixture, ids[:rows], backend), plain)


def scored(case: Case) -> dict[str, object]:
    """Return what a case's model is called with to score."""
    target = {"decoder_input_ids": tokens(2, 3)} if case.shape == "t5" else {}
    return {"input_ids": tokens(2, 6), "use_cache": False, **target}


def gradients(
    mixture: MixtureModel, model: torch.nn.Module, ids: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradients of the gates after a backward pass of `model`, which runs `mixture`."""
    mixture.zero_grad()
    prompt = 0 if mixture.config.is_encoder_decoder else 2
    labels = ids.where(torch.arange(ids.shape[1]) >= prompt, -100)
    model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    return [each.grad.clone() for each in mixture.parameters() if each.requires_grad]


@torch.no_grad()
def cached_steps(
    mixture: MixtureModel, stepping: torch.nn.Module, ids: torch.Tensor
) -> torch.Tensor:
    """Return the logits of three cached steps of `stepping` after a first pass of the mixture."""
    config = mixture.config.get_text_config(decoder=True)
    cache = StaticCache(config=config, max_cache_len=16)
    if mixture.config.is_encoder_decoder:
        cache = EncoderDecoderCache(cache, StaticCache(config=config, max_cache_len=16))
        first = {"encoder_outputs": mixture.base.get_encoder()(input_ids=ids)}
        key = "decoder_input_ids"
    else:
        first, key = {}, "input_ids"
    cache = mixture(
        **first, **{key: ids[:, :3]}, past_key_values=cache, use_cache=True
    ).past_key_values
    steps = []
    for place in range(3, 6):
        output = stepping(
            **first, **{key: ids[:, place : place + 1]}, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        steps.append(output.logits)
    return torch.cat(steps, 1)


def generated(mixture: MixtureModel, ids: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Return the scores of 16 tokens; with a backend, as transformers compiles its steps on an
    accelerator.

    Steps that were each compiled anew would be too many for torch, which then raises an error.
    """
    settings = {}
    if backend is not None:
        torch._dynamo.reset()
        config = CompileConfig(backend=backend, mode=None, fullgraph=True)
        config._compile_all_devices = True
        settings = {"cache_implementation": "static", "compile_config": config}
        vars(mixture.base).pop("_compiled_call", None)
    tokens = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    found = mixture.generate(
        input_ids=ids, **tokens, **settings, output_scores=True, return_dict_in_generate=True
    )
    assert backend is None or "_compiled_call" in vars(mixture.base), "nothing was compiled"
    scores = torch.stack(found.scores)
    return scores[scores > -torch.inf]


def main(extent: str, backend: str, *cases: str) -> None:
    """Check these cases, each a shape and a context."""
    check = {"scores": check_scores, "whole": check_whole}[extent]
    for case in cases:
        shape, context = case.split("-")
        with tempfile.TemporaryDirectory() as folder:
            saved = {
                name: save_expert(Path(folder) / name, shape, seed=ord(name)) for name in "abc"
            }
            check(Case(shape, context), lambda *_, saved=saved: saved, backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
