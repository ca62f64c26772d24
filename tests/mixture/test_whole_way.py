"""The whole way of a mixture: trained, saved, loaded, extended, trained on, exported, and served
without loramix.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import close, peft_logits, target_logits, tiny_model, tokens
from peft import PeftModel

from loramix import GateConfig, MixtureModel

NAMES = ["a", "b", "c", "d"]
PROMPT, TARGET = 6, 4


def prompts(name: str, count: int, seed: int) -> torch.Tensor:
    """Return prompts (count, 6) of a few words that belong to this expert."""
    first = 5 + 20 * NAMES.index(name)
    return torch.randint(
        first, first + 3, (count, PROMPT), generator=torch.Generator().manual_seed(seed)
    )


@torch.no_grad()
def lesson(shape: str, name: str, folder: Path, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts of an expert and what its adapter alone answers: the truth that gates are to
    find.
    """
    expert, ids = (
        PeftModel.from_pretrained(tiny_model(shape), folder).eval(),
        prompts(name, 8, seed),
    )
    answers = expert.generate(
        input_ids=ids, max_new_tokens=TARGET, min_new_tokens=TARGET, do_sample=False
    )
    return ids, answers[:, -TARGET:].contiguous()


def loss(mixture: MixtureModel, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if mixture.config.is_encoder_decoder:
        return mixture(input_ids=ids, labels=target).loss
    labels = torch.cat([torch.full_like(ids, -100), target], 1)
    return mixture(input_ids=torch.cat([ids, target], 1), labels=labels).loss


def learn(
    mixture: MixtureModel, lessons: Sequence[tuple[torch.Tensor, torch.Tensor]], *, steps: int = 60
) -> None:
    """Train the gates on all lessons."""
    trained = [parameter for parameter in mixture.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([loss(mixture, *lesson) for lesson in lessons]).mean().backward()
        optimizer.step()


@torch.no_grad()
def mean_loss(mixture: MixtureModel, lessons: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return float(torch.stack([loss(mixture, *lesson) for lesson in lessons]).mean())


def oracle_loss(
    mixture: MixtureModel, lessons: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Return the mean loss if every lesson gets the expert that it came from, alone."""
    losses = []
    for name, each in zip(mixture.expert_names, lessons, strict=True):
        with mixture.fixed({name: 1.0}):
            losses.append(mean_loss(mixture, [each]))
    return sum(losses) / len(losses)


@torch.no_grad()
def own_share(mixture: MixtureModel, name: str) -> float:
    """Return the mean weight that prompts unseen in training give to their expert."""
    found = mixture.mean_weights(input_ids=prompts(name, 8, seed=99)).values()
    return float(
        torch.stack([weights[:, mixture.expert_names.index(name)] for weights in found]).mean()
    )


@pytest.mark.parametrize("shape", ["t5", "llama"])
def test_three_experts_all_the_way(
    shape: str, experts: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    folders = experts(shape, NAMES)
    three = {name: folders[name] for name in NAMES[:3]}
    lessons = [lesson(shape, name, folder, seed=1) for name, folder in folders.items()]
    torch.manual_seed(0)
    mixture = MixtureModel.from_experts(tiny_model(shape), three, gate=GateConfig(hidden=12)).eval()
    assert own_share(mixture, "a") == pytest.approx(1 / 3)
    uniform, oracle = mean_loss(mixture, lessons[:3]), oracle_loss(mixture, lessons[:3])
    learn(mixture, lessons[:3])
    assert mean_loss(mixture, lessons[:3]) < min(uniform, oracle + 0.05)

    mixture.save_pretrained(tmp_path / "three")
    loaded = MixtureModel.from_pretrained(tmp_path / "three", base=tiny_model(shape))
    ids, target = lessons[0][0][:1], lessons[0][1][:1]
    before = target_logits(loaded, ids, target)
    assert torch.equal(before, target_logits(mixture, ids, target))

    loaded.add_expert("d", folders["d"])
    close(target_logits(loaded, ids, target), before)
    assert own_share(loaded, "d") == 0.0
    without = mean_loss(loaded, lessons)
    learn(loaded, lessons, steps=150)  # the new expert's share starts at nothing
    assert mean_loss(loaded, lessons) < min(without, oracle_loss(loaded, lessons) + 0.05)
    assert own_share(loaded, "d") > 0.01

    loaded.save_pretrained(tmp_path / "four")
    four = MixtureModel.from_pretrained(tmp_path / "four", base=tiny_model(shape))
    for name in NAMES:
        prompt = prompts(name, 1, seed=7)
        answer = tokens(1, TARGET, seed=8)
        four.export(tmp_path / f"for-{name}", prompt={"input_ids": prompt})
        close(
            peft_logits(shape, tmp_path / f"for-{name}", prompt, answer),
            target_logits(four, prompt, answer),
        )
        served = PeftModel.from_pretrained(tiny_model(shape), tmp_path / f"for-{name}").eval()
        settings = {"input_ids": prompt, "max_new_tokens": TARGET, "do_sample": False}
        assert torch.equal(served.generate(**settings), four.generate(**settings))
