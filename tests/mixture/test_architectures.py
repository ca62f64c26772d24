"""The promises of a mixture on architectures that call their layers in ways of their own."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture_checks import architecture, attention_layers, base_cells, cells
from tiny_architectures import architectures, tiny_model

from loramix import GateConfig

# Flat rows, readers that run first, state-space caches, shared blocks, hybrids, experts.
FEW = [
    "bloom",
    "falcon_mamba",
    "gpt_neo",
    "gptj",
    "jamba",
    "mamba2",
    "opt",
    "phi3",
    "qwen3_next",
    "xglm",
    "zamba",
    "biogpt",
]
OWN_LIMITS = {
    "phimoe": "its router draws noise in training",
    "reformer": "in training its rows are multiples of a chunk",
}
TOGETHER = GateConfig(scope="block", first_pass=True, pooling="attention")
GATES = [GateConfig(scope="model"), GateConfig(context="running"), TOGETHER]  # in turn
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep what transformers says of slow paths out of the log."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def check(name: str, folder: Path, gate: GateConfig) -> None:
    """Assert that nothing is inexact that the base itself keeps."""
    base = tiny_model(name)
    own = base_cells(base)
    made = architecture(base, folder, attention_layers(base))
    found = cells(made, gate)
    wrong = {
        promise: cell
        for promise, cell in found.items()
        if cell.verdict in ("wrong", "fails")
        and (promise not in own or own[promise].verdict == "exact")
    }
    assert not wrong


@pytest.mark.parametrize("name", FEW)
def test_promises_are_kept(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, GATES[FEW.index(name) % len(GATES)])


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_promises_are_kept_or_refused_everywhere(name: str, tmp_path: Path) -> None:
    if name in OWN_LIMITS:
        pytest.skip(OWN_LIMITS[name])
    try:
        tiny_model(name)
    except Exception as error:  # whatever a configuration raises that is not shrunk so simply
        pytest.skip(f"no tiny model: {error}")
    for context in ("prompt", "running", "token"):
        check(name, tmp_path / context, GateConfig(context=context, scope="block"))
    check(name, tmp_path / "together", TOGETHER)
