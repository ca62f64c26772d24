"""The contract of a mixture, line by line: loramix beside PEFT's X-LoRA, Arrow and Lily.

    python benchmarks/contract.py

Every line compares two computations that should give the same logits, on tiny random models, and
shows their largest difference in standard deviations of the logits. Up to 0.001 is rounding.
"""

import math
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from contract_systems import SHAPES, SYSTEMS, System, base, save_experts
from peft import PeftModel
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from loramix import MixtureModel
from loramix.errors import LoramixError

TOLERANCE = 1e-3
IDS = torch.randint(3, 97, (3, 6), generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(3, 97, (3, 5), generator=torch.Generator().manual_seed(1))


class NotOfferedError(Exception):
    """A line about a feature that a system does not have."""


class RefusedError(Exception):
    """A request that a system refuses in words, by design."""


def apart(left: Tensor, right: Tensor) -> float:
    """Return the largest difference in standard deviations of the logits."""
    return float((left - right).abs().max() / right.std())


def alone(system: System) -> float:
    """C1: a row alone and in a batch."""
    together = system.logits(IDS, TARGET)
    gaps: list[float] = []
    for i in range(3):
        row = system.logits(IDS[i : i + 1], TARGET[i : i + 1])
        gaps.append(apart(row, together[i : i + 1]))
    return max(gaps)


def padding(system: System) -> float:
    """C2: padded on the left (T5: on the right)."""
    gap, ones = torch.full((3, 4), 5), torch.ones_like(IDS)
    if system.seq2seq:
        wide, mask = torch.cat([IDS, gap], 1), torch.cat([ones, 0 * gap], 1)
        return apart(system.logits(wide, TARGET, attention_mask=mask), system.logits(IDS, TARGET))
    wide, mask = torch.cat([gap, IDS], 1), torch.cat([0 * gap, ones, torch.ones_like(TARGET)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = system.logits(wide, TARGET, attention_mask=mask, position_ids=positions)
    return apart(padded, system.logits(IDS, TARGET))


def causality(system: System) -> float:
    """C3: another target from its third token on, and the logits before it."""
    other = torch.cat([TARGET[:, :2], TARGET[:, 2:].flip(0)], 1)
    return apart(system.logits(IDS, other)[:, :2], system.logits(IDS, TARGET)[:, :2])


def steps(system: System) -> float:
    """C4: token by token with a cache, and one pass."""
    return apart(_cached(system, [IDS.shape[1]]), system.logits(IDS, TARGET))


def chunks(system: System) -> float:
    """C4: the prompt in two pieces."""
    if system.seq2seq:
        raise NotOfferedError("an encoder reads its prompt at once")
    if system.name == "loramix prompt":
        system.model.generate(input_ids=IDS, max_new_tokens=2, prefill_chunk_size=3)
    return apart(_cached(system, [3, 3]), system.logits(IDS, TARGET))


def beams(system: System) -> float:
    """C4: beam search alone and without a cache: the share of answers that differ."""
    settings = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

    def answers(ids: Tensor, **more: object) -> Tensor:
        return system.model.generate(input_ids=ids, **settings, **more)[:, -5:]

    plain = answers(IDS, attention_mask=torch.ones_like(IDS))
    others = [torch.cat([answers(row) for row in IDS.split(1)])]
    if system.with_cache is None:  # the others never use one
        others.append(answers(IDS, use_cache=False))
    return max(float((plain != other).any(1).float().mean()) for other in others)


def encoder_outputs(system: System) -> float:
    """C4: encoder outputs given by the user."""
    if not system.seq2seq:
        raise NotOfferedError("no encoder")
    given = BaseModelOutput(_inner(system).get_encoder()(input_ids=IDS).last_hidden_state)
    found = system.model(encoder_outputs=given, decoder_input_ids=TARGET).logits
    return apart(found, system.logits(IDS, TARGET))


def one_expert(system: System) -> float:
    """C5: one expert chosen, and PEFT with that adapter alone."""
    plain = PeftModel.from_pretrained(base(system.shape), system.folders["b"]).eval()
    expected = System("PEFT", system.shape, {}, plain).logits(IDS, TARGET)
    return apart(_chosen(system, [0.0, 1.0, 0.0]), expected)


def merged(system: System) -> float:
    """C6: weights set by hand, and the exact update at these weights merged into the base."""
    weights, plain = [0.5, 0.2, 0.3], base(system.shape)
    exact = MixtureModel.from_experts(base(system.shape), system.folders)
    for name in exact.layers:
        updates = [expert.updates[name] for expert in exact.experts]
        weighed = list(zip(weights, updates, strict=True))
        if system.name == "loramix reference":  # its definition: B and A are mixed on their own
            up = sum(weight * each.scale * each.up_OR for weight, each in weighed)
            delta = up @ sum(weight * each.down_RD for weight, each in weighed)
        else:
            delta = sum(weight * each.scale * each.up_OR @ each.down_RD for weight, each in weighed)
        plain.get_submodule(name).weight.data += delta.T if system.shape == "GPT-2" else delta
    expected = System("merged", system.shape, {}, plain).logits(IDS, TARGET)
    return apart(_chosen(system, weights), expected)


def reload(system: System) -> float:
    """C7: saved and loaded by the system's own functions."""
    before = system.logits(IDS, TARGET)
    with tempfile.TemporaryDirectory() as folder:
        system.model = system.again(Path(folder) / "saved")
    return apart(system.logits(IDS, TARGET), before)


def order(system: System) -> float:
    """C8: the experts in another order, the router's rows with them."""
    if system.reversed is None:
        raise NotOfferedError("users do not order its experts")
    before, system.model = system.logits(IDS, TARGET), system.reversed()
    return apart(system.logits(IDS, TARGET), before)


@torch.enable_grad()
def training(system: System) -> float:
    """C9: the largest change of a weight outside the router in a training step."""
    if not system.router:
        raise NotOfferedError("it trains nothing")
    before = {key: value.clone() for key, value in system.model.state_dict().items()}
    trained = [parameter for parameter in system.model.parameters() if parameter.requires_grad]
    _loss(system).backward()
    torch.optim.SGD(trained, lr=1.0).step()
    router, rest = [0.0], [0.0]
    for key, value in system.model.state_dict().items():
        change = float((value - before[key]).abs().max())
        (router if system.router in key else rest).append(change)
    assert max(router) > 0, "the router did not move"
    return max(rest)


@torch.enable_grad()
def checkpointing(system: System) -> float:
    """C9: gradients with and without gradient checkpointing, relative to the largest."""
    if not system.router:
        raise NotOfferedError("it trains nothing")
    gradients = []
    for turn in range(2):
        if turn:
            system.model.gradient_checkpointing_enable({"use_reentrant": False})
            _train_without_dropout(system.model)
        system.model.zero_grad()
        _loss(system).backward()
        trained = [p for p in system.model.parameters() if p.requires_grad and p.grad is not None]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def threads(system: System) -> float:
    """C9: two threads with different requests at once."""
    requests = [(IDS[:1], TARGET[:1]), (IDS[1:, :4], TARGET[1:])]
    expected, worst = [system.logits(*request) for request in requests], [0.0, 0.0]

    @torch.no_grad()
    def ask(index: int) -> None:
        for _ in range(30):
            try:
                gap = apart(system.logits(*requests[index]), expected[index])
                worst[index] = max(worst[index], gap)
            except Exception:  # a shape that belongs to the other request
                worst[index] = float("inf")

    running = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return max(worst)


def export(system: System) -> float:
    """An ordinary PEFT adapter for one prompt."""
    if not isinstance(system.model, MixtureModel):
        raise NotOfferedError("no export")
    ids, target = IDS[:1], TARGET[:1]
    with tempfile.TemporaryDirectory() as folder:
        system.model.export(Path(folder) / "adapter", prompt={"input_ids": ids})
        plain = PeftModel.from_pretrained(base(system.shape), Path(folder) / "adapter").eval()
    served = System("PEFT", system.shape, {}, plain).logits(ids, target)
    return apart(served, system.logits(ids, target))


LINES: dict[str, Callable[[System], float]] = {
    "C1 a row alone, and in a batch": alone,
    "C2 padding": padding,
    "C3 future tokens": causality,
    "C4 cached steps, and one pass": steps,
    "C4 chunked prefill": chunks,
    "C4 beam search (share of answers that differ)": beams,
    "C4 encoder outputs of the user": encoder_outputs,
    "C5 one expert is its adapter": one_expert,
    "C6 fixed weights are the exact merge": merged,
    "C7 save and load": reload,
    "C8 order of experts": order,
    "C9 training moves the router alone": training,
    "C9 gradient checkpointing": checkpointing,
    "C9 two threads": threads,
    "export to an ordinary adapter": export,
}


def _cached(system: System, prefill: list[int]) -> Tensor:
    """Return the target's logits with a cache: the prompt in these pieces, then by tokens."""
    if system.with_cache is not None:
        try:
            system.with_cache()
        except ValueError as error:
            raise RefusedError(str(error)) from error
    inputs, stream, sizes = {}, torch.cat([IDS, TARGET], 1), [*prefill, *[1] * TARGET.shape[1]]
    key = "input_ids"
    if system.seq2seq:
        inputs = {"encoder_outputs": _inner(system).get_encoder()(input_ids=IDS)}
        stream, sizes, key = TARGET, [1] * TARGET.shape[1], "decoder_input_ids"
    cache, found = None, []
    for piece in stream.split(sizes, 1):
        output = system.model(**inputs, **{key: piece}, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, 1)[:, -TARGET.shape[1] :]


def _inner(system: System) -> torch.nn.Module:
    """Return the base model inside the mixture."""
    if isinstance(system.model, MixtureModel):
        return system.model.base
    return system.model.get_base_model()


def _chosen(system: System, weights: list[float]) -> Tensor:
    """Return the logits at weights set by hand."""
    if system.choose is None:
        lily = system.name == "Lily"
        raise NotOfferedError("it mixes no given adapters" if lily else "no way to set weights")
    with system.choose(weights):
        return system.logits(IDS, TARGET)


def _loss(system: System) -> Tensor:
    _train_without_dropout(system.model)
    labels = TARGET if system.seq2seq else torch.cat([torch.full((3, 3), -100), IDS[:, 3:]], 1)
    return system.model(input_ids=IDS, labels=labels, use_cache=False).loss


def _train_without_dropout(model: torch.nn.Module) -> None:
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


@torch.no_grad()
def verdict(line: Callable[[System], float], build: Callable[[], System]) -> tuple[str, str]:
    """Return the cell of a line, and the whole text of an error if there was one."""
    try:
        system = build()
        value = line(system)
    except NotOfferedError as reason:
        return f"– ({reason})", ""
    except (LoramixError, RefusedError) as error:
        return "refuses", str(error)
    except Exception as error:
        return "does not run", f"{type(error).__name__}: {error}"
    if value <= TOLERANCE:
        return (f"keeps ({value:.0e})" if value else "keeps (0)"), ""
    return f"**breaks ({'errors' if math.isinf(value) else format(value, '.2g')})**", ""


def table(shape: str, folders: dict[str, Path]) -> None:
    """Print the table of one shape without lines that concern no system, and the full errors."""
    notes: dict[tuple[str, str, str], list[str]] = {}
    print(f"### {shape}\n\n| | {' | '.join(SYSTEMS)} |\n|---{'|---' * len(SYSTEMS)}|")
    for title, line in LINES.items():
        cells = []
        for name, build in SYSTEMS.items():
            cell, error = verdict(line, partial(build, shape, folders))
            cells.append(cell)
            if error:
                notes.setdefault((name, cell, error.splitlines()[0]), []).append(title.split()[0])
            print(f"{shape}, {title}, {name}: {cell}", file=sys.stderr)
        if any(cell.startswith(("keeps", "**breaks")) for cell in cells):
            print(f"| {title} | {' | '.join(cells)} |")
    print()
    for (name, cell, error), titles in notes.items():
        print(f"- {name} {cell} ({', '.join(dict.fromkeys(titles))}): {error}")
    print()


def main() -> None:
    """Print the versions, and one table for every shape."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    libraries = ("loramix", "peft", "transformers", "torch")
    print(", ".join(f"{name} {version(name)}" for name in libraries) + "\n")
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as root:
            table(shape, save_experts(shape, Path(root)))


if __name__ == "__main__":
    main()
