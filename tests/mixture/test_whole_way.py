"""The whole way of a mixture: trained, saved, loaded, extended, trained on, exported, and served
without loramix.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import close, save_expert, target_logits, tiny_model, tokens
from peft import PeftModel
from transformers import PreTrainedModel

from loramix import GateConfig, MixtureModel

NAMES = ["a", "b", "c", "d"]
PROMPT, TARGET = 6, 4
# Random models give every token about the same probability. Sharper ones are sure of their answers,
# and strong adapters answer each in its own way: the wrong expert costs several nats per token.
SHARPER, ALPHA = {"t5": 4.0, "llama": 30.0}, {"t5": 64, "llama": 8}
Lesson = tuple[torch.Tensor, torch.Tensor]
pytestmark = pytest.mark.axes(False)  # smaller tests check them


@torch.no_grad()
def sure_model(shape: str) -> PreTrainedModel:
    """Return a tiny random model that is sure of its answers."""
    model = tiny_model(shape)
    norm = model.decoder.final_layer_norm if shape == "t5" else model.model.norm
    norm.weight *= SHARPER[shape]
    return model


def served(shape: str, folder: Path) -> PeftModel:
    """Return the base with one adapter, served by PEFT."""
    return PeftModel.from_pretrained(sure_model(shape), folder).eval()


def prompts(name: str, count: int, seed: int) -> torch.Tensor:
    """Return prompts (count, 6) of a few words that belong to this expert."""
    first = 5 + 20 * NAMES.index(name)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(first, first + 3, (count, PROMPT), generator=generator)


@torch.no_grad()
def lesson(shape: str, name: str, folder: Path, seed: int) -> Lesson:
    """Return prompts of an expert and what its adapter alone answers: the truth that gates are to
    find.
    """
    ids = prompts(name, 8, seed)
    length = {"max_new_tokens": TARGET, "min_new_tokens": TARGET}
    answers = served(shape, folder).generate(input_ids=ids, do_sample=False, **length)
    return ids, answers[:, -TARGET:].contiguous()


def loss(mixture: MixtureModel, lessons: Sequence[Lesson]) -> torch.Tensor:
    """Return the mean loss (nats per token) over all lessons."""
    ids, target = (torch.cat(parts) for parts in zip(*lessons, strict=True))
    if mixture.config.is_encoder_decoder:
        return mixture(input_ids=ids, labels=target).loss
    labels = torch.cat([torch.full_like(ids, -100), target], 1)
    return mixture(input_ids=torch.cat([ids, target], 1), labels=labels).loss


def learn(mixture: MixtureModel, lessons: Sequence[Lesson], *, steps: int) -> None:
    """Train the gates on all lessons."""
    trained = [parameter for parameter in mixture.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(mixture, lessons).backward()
        optimizer.step()


@torch.no_grad()
def mean_loss(mixture: MixtureModel, lessons: Sequence[Lesson]) -> float:
    return float(loss(mixture, lessons))


def largest_share(mixture: MixtureModel, name: str) -> float:
    """Return the weight that prompts unseen in training give to their expert, where it is
    largest.
    """
    found = mixture.mean_weights(input_ids=prompts(name, 8, seed=99)).values()
    place = mixture.expert_names.index(name)
    return max(float(weights[:, place].mean()) for weights in found)


@pytest.mark.parametrize("shape", [pytest.param("t5", marks=pytest.mark.slow), "llama"])
def test_three_experts_all_the_way(shape: str, tmp_path: Path) -> None:
    folders = {
        name: save_expert(tmp_path / name, shape, seed=ord(name), lora_alpha=ALPHA[shape])
        for name in NAMES
    }
    lessons = [lesson(shape, name, folder, seed=1) for name, folder in folders.items()]
    three = {name: folders[name] for name in NAMES[:3]}
    torch.manual_seed(0)
    mixture = MixtureModel.from_experts(sure_model(shape), three, gate=GateConfig(hidden=12)).eval()
    assert largest_share(mixture, "a") == pytest.approx(1 / 3)
    uniform = mean_loss(mixture, lessons[:3])
    learn(mixture, lessons[:3], steps=30)
    assert mean_loss(mixture, lessons[:3]) < uniform - 1

    mixture.save_pretrained(tmp_path / "three")
    loaded = MixtureModel.from_pretrained(tmp_path / "three", base=sure_model(shape))
    ids, target = lessons[0][0][:1], lessons[0][1][:1]
    before = target_logits(loaded, ids, target)
    assert torch.equal(before, target_logits(mixture, ids, target))

    loaded.add_expert("d", folders["d"])
    close(target_logits(loaded, ids, target), before)
    assert largest_share(loaded, "d") == 0.0
    without = mean_loss(loaded, lessons[3:])
    learn(loaded, lessons, steps=60)  # the new expert's share starts at nothing
    assert mean_loss(loaded, lessons[3:]) < without - 1
    assert largest_share(loaded, "d") > 0.05

    loaded.save_pretrained(tmp_path / "four")
    four = MixtureModel.from_pretrained(tmp_path / "four", base=sure_model(shape))
    for name in ("a", "d"):
        prompt, answer = prompts(name, 1, seed=7), tokens(1, TARGET, seed=8)
        four.export(tmp_path / f"for-{name}", prompt={"input_ids": prompt})
        alone = served(shape, tmp_path / f"for-{name}")
        logits = [target_logits(model, prompt, answer) for model in (alone, four)]
        close(*(each / SHARPER[shape] for each in logits))
        settings = {"input_ids": prompt, "max_new_tokens": TARGET, "do_sample": False}
        assert torch.equal(alone.generate(**settings), four.generate(**settings))
