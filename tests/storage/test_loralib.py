"""Import of the reference's checkpoints, against a transcription of its formula."""

from pathlib import Path

import pytest
import torch
from conftest import strengthen, tiny_model, tokens
from torch import Tensor

from loramix import MixtureModel
from loramix.cli.loralib import import_mixture
from loramix.errors import CheckpointError, ExpertError

ALPHA, RANK, HIDDEN, WIDTH = 2.0, 4, 5, 32
LAYERS = [
    f"{side}.block.{block}.layer.{part}.{attention}.{projection}"
    for side, parts in (
        ("encoder", ["SelfAttention"]),
        ("decoder", ["SelfAttention", "EncDecAttention"]),
    )
    for block in range(2)
    for part, attention in enumerate(parts)
    for projection in "qkvo"
]
BASE = tiny_model("t5")  # to look at, and not to be changed


def shapes(layer: str) -> tuple[int, int]:
    module = BASE.get_submodule(layer)
    return module.in_features, module.out_features


def files(folder: Path) -> tuple[dict[str, Path], Path]:
    """Save two experts and the gates as the reference does, and return the files."""
    torch.manual_seed(4)
    experts = {}
    for name in ("haiku", "title"):
        state = {}
        for layer in LAYERS:
            wide, out = shapes(layer)
            state |= {
                f"{layer}.lora_A": torch.randn(RANK, wide),
                f"{layer}.lora_B": torch.randn(out, RANK),
            }
        experts[name] = folder / f"{name}.pt"
        torch.save({key: value * 0.2 for key, value in state.items()}, experts[name])
    gates = {}
    for layer in LAYERS:
        prefix = f"{layer}.context_gated_mixing"
        gates[f"{prefix}.lin1.weight"] = torch.randn(HIDDEN, shapes(layer)[0])
        gates[f"{prefix}.output.weight"] = torch.randn(2, HIDDEN)
    torch.save(
        {"model_state_dict": {**gates, "shared.weight": torch.zeros(3)}}, folder / "gates.pth"
    )
    return experts, folder / "gates.pth"


def reference(
    x: Tensor, w: Tensor, down: list[Tensor], up: list[Tensor], lin1: Tensor, output: Tensor
) -> Tensor:
    """The reference's layer, transcribed; x is (1, T, D)."""
    logits = torch.relu(x @ lin1.T) @ output.T
    gate = logits.mean(1).softmax(-1).mean(0)
    a = sum(g * each for g, each in zip(gate, down, strict=True))
    b = sum(g * each for g, each in zip(gate, up, strict=True))
    return x @ w.T + (ALPHA / RANK) * (x @ a.T @ b.T)


def test_an_imported_mixture_is_the_reference_formula(tmp_path: Path) -> None:
    experts, gates = files(tmp_path)
    import_mixture(tiny_model("t5"), experts, gates, tmp_path / "mixture", alpha=ALPHA)
    mixture = MixtureModel.from_pretrained(tmp_path / "mixture", base=tiny_model("t5"))
    assert mixture.gate_config.context == "reference"
    assert [expert.source for expert in mixture.experts] == [str(file) for file in experts.values()]
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in mixture.layers.items():
        layer.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: (args[0], output)})
        )
    mixture(input_ids=tokens(1, 7), decoder_input_ids=tokens(1, 1))
    adapters = [torch.load(file, weights_only=True) for file in experts.values()]
    gate = torch.load(gates, weights_only=True)["model_state_dict"]
    encoder = [name for name in LAYERS if name.startswith("encoder.")]
    for name in encoder:
        x, found = seen[name]
        expected = reference(
            x,
            BASE.get_submodule(name).weight,
            [adapter[f"{name}.lora_A"] for adapter in adapters],
            [adapter[f"{name}.lora_B"] for adapter in adapters],
            gate[f"{name}.context_gated_mixing.lin1.weight"],
            gate[f"{name}.context_gated_mixing.output.weight"],
        )
        torch.testing.assert_close(
            found, expected, atol=1e-6 * float(expected.detach().abs().max()), rtol=0
        )
    assert len(encoder) == 8


def test_files_that_are_no_such_checkpoint_are_refused(tmp_path: Path) -> None:
    experts, gates = files(tmp_path)
    out = tmp_path / "mixture"

    def attempt(**changed: object) -> None:
        given = {"experts": experts, "gates": gates, **changed}
        import_mixture(tiny_model("t5"), given["experts"], given["gates"], out)

    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("code that a file must not run",)

    torch.save({"a.lora_A": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        attempt(experts={"a": tmp_path / "harmful.pt"})
    with pytest.raises(ExpertError, match="holds no loralib matrices"):
        attempt(experts={"a": gates})
    with pytest.raises(CheckpointError, match="holds no gates"):
        attempt(gates=experts["haiku"])
    with pytest.raises(CheckpointError, match="weigh \\[2\\] experts, but 1 are given"):
        attempt(experts={"haiku": experts["haiku"]})
    with pytest.raises(CheckpointError, match="does not exist"):
        attempt(gates=tmp_path / "nothing.pt")
    state = torch.load(experts["haiku"], weights_only=True)
    first = f"{LAYERS[0]}.lora_B"
    torch.save(
        {key: value for key, value in state.items() if key != first}, tmp_path / "unpaired.pt"
    )
    with pytest.raises(ExpertError, match=r"without its '\.lora_B'"):
        attempt(experts={"haiku": tmp_path / "unpaired.pt", "title": experts["title"]})
    torch.save({**state, f"{LAYERS[0]}.lora_A": torch.zeros(3, 32)}, tmp_path / "ranks.pt")
    with pytest.raises(ExpertError, match=r"ranks \[3, 4\]"):
        attempt(experts={"haiku": tmp_path / "ranks.pt", "title": experts["title"]})
    torch.save(
        {f"{LAYERS[0]}.context_gated_mixing.lin1.bias": torch.zeros(3)}, tmp_path / "bias.pt"
    )
    with pytest.raises(CheckpointError, match="does not have"):
        attempt(gates=tmp_path / "bias.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        attempt(gates=tmp_path / "list.pt")
    assert not out.exists()


def test_an_imported_mixture_keeps_padding_out(tmp_path: Path) -> None:
    experts, gates = files(tmp_path)
    import_mixture(tiny_model("t5"), experts, gates, tmp_path / "mixture", alpha=ALPHA)
    mixture = MixtureModel.from_pretrained(tmp_path / "mixture", base=tiny_model("t5"))
    ids, gap = tokens(1, 5), torch.zeros(1, 3, dtype=torch.long)
    wide = torch.cat([ids, gap], 1)
    plain = mixture.weights(input_ids=ids)
    padded = mixture.weights(input_ids=wide, attention_mask=(wide > 0).long())
    assert all(torch.allclose(plain[name], padded[name], atol=1e-5) for name in plain)
    assert strengthen(mixture).expert_names == ["haiku", "title"]
