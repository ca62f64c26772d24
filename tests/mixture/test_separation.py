"""Gates that draw the line between experts where their examples end."""

import pytest
import torch
from cases import Experts
from conftest import close
from test_prototypes import NAMES, build, prompts

from loramix import GateConfig
from loramix.mixture import prototypes
from loramix.mixture.gate import ContextGate
from loramix.mixture.means import scatter_of, write_rule
from loramix.mixture.prototypes import from_examples
from loramix.mixture.separation import PULL, can_separate, separate

WIDTH = 8


def gate_of(contexts: list[torch.Tensor], **config: object) -> ContextGate:
    """Return a gate that follows the nearest of the contexts' means."""
    gate = ContextGate(WIDTH, len(contexts), GateConfig(hidden=4, **config))
    apart = torch.cat([each - each.mean(0) for each in contexts])
    variance = float(apart.square().sum(1).mean())
    scatter = scatter_of(apart / len(apart) ** 0.5, variance, experts=len(contexts))
    with torch.no_grad():
        write_rule(gate, torch.stack([each.mean(0) for each in contexts]), scatter, 12.0)
    return gate


def weights(gate: ContextGate, contexts_ND: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(len(contexts_ND), 1, dtype=torch.bool)
    return gate(contexts_ND[:, None], mask)[:, 0].detach()


def around(centre: list[float], count: int, seed: int) -> torch.Tensor:
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(centre) + 0.05 * noise


def skewed() -> list[torch.Tensor]:
    """Return contexts of two experts, no longer than those of gates: a few of the first lie nearer
    to the second's mean.
    """
    usual = around([0.0] * WIDTH, 18, seed=1)
    few = around([1.5] + [0.0] * (WIDTH - 1), 2, seed=2)
    return [torch.cat([usual, few]), around([2.2] + [0.0] * (WIDTH - 1), 20, seed=3)]


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("activation", ["softmax", "top-k"])
def test_what_lies_beyond_the_middle_of_two_means_is_told(
    activation: str, temperature: float
) -> None:
    contexts = skewed()
    gate = gate_of(contexts, activation=activation, temperature=temperature)
    assert float(weights(gate, contexts[0])[-2:, 0].max()) < 0.5  # nearest means are wrong there
    separate(gate, contexts)
    for expert, own in enumerate(contexts):
        assert float(weights(gate, own)[:, expert].min()) > 0.8


def test_the_line_is_that_of_logistic_regression() -> None:
    """Next to nothing lowers the objective on paper any further."""
    generator = torch.Generator().manual_seed(0)
    contexts = [torch.randn(9 + 3 * each, WIDTH, generator=generator) + each for each in range(3)]
    gate = gate_of(contexts)
    spread = sum((each - each.mean(0)).square().sum(1).mean() for each in contexts) / 3

    def rule() -> list[torch.Tensor]:
        bias = gate.score.bias + gate.lift.bias[:3]
        return [gate.lift.weight[:3].detach().double(), bias.detach().double()]

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        wrong = sum(
            torch.nn.functional.cross_entropy(
                own.double() @ weight.T + bias, torch.full((len(own),), expert)
            )
            for expert, own in enumerate(contexts)
        )
        # The shift is free, so that of the centre drops out and the pull is on the weights alone.
        return wrong / 3 + PULL * spread * (weight - start[0]).square().sum() / 2

    start = rule()
    separate(gate, contexts)
    found = rule()
    least = [each.clone().requires_grad_() for each in found]
    optimizer = torch.optim.LBFGS(least, max_iter=500, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = objective(*least)
        value.backward()
        return value

    optimizer.step(step)
    lowest = float(objective(*least).detach())
    assert float(objective(*start)) > lowest + 0.1
    assert float(objective(*found)) < lowest + 1e-3


def test_where_nearest_means_are_right_hardly_anything_moves() -> None:
    contexts = [
        around([2.0 * (each == place) for place in range(WIDTH)], 12, each) for each in (0, 1)
    ]
    gate = gate_of(contexts)
    before = gate.lift.weight.detach().clone()
    separate(gate, contexts)
    moved = gate.lift.weight.detach() - before
    assert float(moved.norm()) < 0.02 * float(before.norm())


def test_gates_whose_means_are_alike_stay_uniform() -> None:
    same = around([1.0] * WIDTH, 4, seed=0)
    gate = gate_of([same, same])
    separate(gate, [same, same])
    close(weights(gate, same), torch.full((4, 2), 0.5))


@pytest.mark.parametrize(
    ("config", "possible"),
    [
        ({"base_slot": True, "activation": "top-1"}, True),
        ({"context": "token"}, False),
        ({"context": "running"}, False),
        ({"activation": "sigmoid"}, False),
        ({"carry": True}, False),
    ],
)
def test_only_one_softmax_over_whole_prompts_is_separated(
    config: dict[str, object], possible: bool
) -> None:
    assert can_separate(GateConfig(**config)) == possible


@pytest.mark.parametrize("kept", [2**30, 3 * 3000])
def test_contexts_that_take_too_much_memory_count_in_part(
    experts: Experts, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototypes, "KEPT_BYTES", kept)
    sizes: list[int] = []

    def noted(gate: ContextGate, contexts: list[torch.Tensor]) -> None:
        sizes.append(max(map(len, contexts)))
        separate(gate, contexts)

    monkeypatch.setattr(prototypes, "separate", noted)
    mixture = build(experts, "llama")
    from_examples(mixture, {name: prompts(name, 8, seed=1) for name in NAMES})
    assert (max(sizes) == 8) == (kept == 2**30)
    assert min(sizes) >= 1
    reader = next(iter(mixture.gates))
    for place, name in enumerate(NAMES):
        found = mixture.weights(**prompts(name, 1, seed=2)[0])[reader][0]
        assert float(found[place]) > 0.9
