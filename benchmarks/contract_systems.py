"""The mixtures that `contract.py` compares: loramix, and PEFT's X-LoRA, Arrow and Lily.

All but Lily, which trains experts of its own, mix the same three adapters. Routers are random and
scaled up, because near-uniform ones would hide every fault.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import (
    ArrowConfig,
    LilyConfig,
    LoraConfig,
    PeftModel,
    XLoraConfig,
    create_arrow_model,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loramix import GateConfig, MixtureModel

SHAPES = ("T5", "Llama", "GPT-2")
TARGETS = {
    "T5": ["q", "k", "v", "o"],
    "Llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "GPT-2": ["c_attn", "c_proj"],
}
NAMES = ("a", "b", "c")
WIDTH, VOCABULARY = 32, 97


@dataclass
class System:
    """A mixture over one shape.

    choose: sets its weights by hand, inside a block; None where it offers no way.
    again, reversed: give the mixture after save and load, and with its experts in reverse order.
    router: a part of the names of its trained parameters; empty where it trains nothing.
    with_cache: asks it to use a cache, which it may refuse.
    """

    name: str
    shape: str
    folders: dict[str, Path]
    model: nn.Module
    choose: Callable[[list[float]], AbstractContextManager[None]] | None = None
    again: Callable[[Path], nn.Module] | None = None
    reversed: Callable[[], nn.Module] | None = None
    router: str = ""
    with_cache: Callable[[], object] | None = None

    @property
    def seq2seq(self) -> bool:
        return self.shape == "T5"

    def logits(self, ids: Tensor, target: Tensor, **inputs: object) -> Tensor:
        """Return the logits at the positions of `target` after the prompt `ids`."""
        if self.seq2seq:
            return self.model(input_ids=ids, decoder_input_ids=target, **inputs).logits
        if isinstance(self.model, MixtureModel):
            prompt = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1)
            inputs["prompt_mask"] = prompt.bool()
        return self.model(input_ids=torch.cat([ids, target], 1), **inputs).logits[:, ids.shape[1] :]


def base(shape: str) -> PreTrainedModel:
    """Return a random model of this shape; the same one every time."""
    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(7)
    if shape == "T5":
        config = T5Config(
            d_model=WIDTH,
            d_kv=12,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            **common,
        )
        return T5ForConditionalGeneration(config).eval()
    if shape == "Llama":
        llama = LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            **common,
        )
        return LlamaForCausalLM(llama).eval()
    return GPT2LMHeadModel(
        GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, **common)
    ).eval()


def save_experts(shape: str, root: Path) -> dict[str, Path]:
    """Save three strong random adapters of rank 4."""
    for index, name in enumerate(NAMES):
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=TARGETS[shape], fan_in_fan_out=shape == "GPT-2"
        )
        model = get_peft_model(base(shape), config)
        torch.manual_seed(index)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = torch.randn(parameter.shape) * (0.1 if shape == "T5" else 0.3)
        model.save_pretrained(root / name)
    return {name: root / name for name in NAMES}


def loramix(context: str) -> Callable[[str, dict[str, Path]], System]:
    """Return a function that builds a loramix mixture whose gates read this context."""

    def build(shape: str, folders: dict[str, Path]) -> System:
        gate = GateConfig.reference() if context == "reference" else GateConfig(context=context)
        mixture = _strong(MixtureModel.from_experts(base(shape), folders, gate=gate))

        def choose(weights: list[float]) -> AbstractContextManager[None]:
            return mixture.fixed(dict(zip(NAMES, weights, strict=True)))

        def again(folder: Path) -> nn.Module:
            mixture.save_pretrained(folder)
            return MixtureModel.from_pretrained(folder, base=base(shape))

        def backwards() -> nn.Module:
            turned = dict(reversed(folders.items()))
            other = MixtureModel.from_experts(base(shape), turned, gate=gate).eval()
            state: dict[str, Tensor] = {}
            for name, module in mixture.gates.items():
                turned_state = module.rearranged([2, 1, 0]).state_dict()
                state |= {f"{name}.{key}": value for key, value in turned_state.items()}
            other.load_gate_state(state)
            return other

        label = f"loramix {context}"
        return System(label, shape, folders, mixture, choose, again, backwards, ".gate.")

    return build


def xlora(shape: str, folders: dict[str, Path]) -> System:
    """Return X-LoRA; its softmax runs over the adapters for every token."""
    model = _xlora_model(shape, folders)

    def choose(weights: list[float]) -> AbstractContextManager[None]:
        last = _last_layer(model)
        last.weight.data.zero_()
        last.bias.data = torch.tensor(weights).clamp(min=1e-30).log()
        return nullcontext()

    def again(folder: Path) -> nn.Module:
        model.save_pretrained(str(folder))
        plain = base(shape)
        plain.config.use_cache = False
        return PeftModel.from_pretrained(plain, str(folder)).eval()

    def backwards() -> nn.Module:
        other = _xlora_model(shape, dict(reversed(folders.items())))
        mine, theirs = _last_layer(model), _last_layer(other)
        theirs.weight.data, theirs.bias.data = mine.weight.data.flip(0), mine.bias.data.flip(0)
        return other

    with_cache = partial(_xlora_model, shape, folders, use_cache=True)
    return System(
        "X-LoRA", shape, folders, model, choose, again, backwards, "xlora_classifier", with_cache
    )


def _xlora_model(shape: str, folders: dict[str, Path], *, use_cache: bool = False) -> PeftModel:
    model = base(shape)
    model.config.use_cache = use_cache
    config = XLoraConfig(
        task_type="SEQ_2_SEQ_LM" if shape == "T5" else "CAUSAL_LM",
        hidden_size=WIDTH,
        xlora_depth=1,
        layerwise_scalings=False,
        adapters={str(index): str(path) for index, path in enumerate(folders.values())},
    )
    built = get_peft_model(model, config).eval()
    last = _last_layer(built)
    torch.manual_seed(3)
    last.weight.data = torch.randn(last.weight.shape) * 4 / WIDTH**0.5
    return built


def _last_layer(model: PeftModel) -> nn.Linear:
    """Return the only layer of X-LoRA's classifier."""
    (last,) = model.base_model.internal_xlora_classifier.layers
    return last


def arrow(shape: str, folders: dict[str, Path]) -> System:
    """Return Arrow, which routes every token by prototypes of the adapters and trains nothing."""

    def build(paths: dict[str, Path]) -> nn.Module:
        config = ArrowConfig(top_k=2, router_temperature=0.5, rng_seed=0)
        adapters = [str(path) for path in paths.values()]
        return create_arrow_model(base(shape), adapters, config).eval()

    return System(
        "Arrow",
        shape,
        folders,
        build(folders),
        again=lambda folder: build(folders),
        reversed=lambda: build(dict(reversed(folders.items()))),
    )


def lily(shape: str, folders: dict[str, Path]) -> System:
    """Return Lily, whose router weighs experts of its own, trained together with it."""
    config = LilyConfig(r=4, num_B=3, stride_A=1, target_modules=TARGETS[shape])
    model = get_peft_model(base(shape), config).eval()
    torch.manual_seed(3)
    for key, parameter in model.named_parameters():
        if "lily_" in key:
            parameter.data = torch.randn(parameter.shape) * (2.0 if "router" in key else 0.3)

    def again(folder: Path) -> nn.Module:
        model.save_pretrained(str(folder))
        return PeftModel.from_pretrained(base(shape), str(folder)).eval()

    return System("Lily", shape, folders, model, None, again, None, "lily_")


SYSTEMS: dict[str, Callable[[str, dict[str, Path]], System]] = {
    "loramix prompt": loramix("prompt"),
    "loramix running": loramix("running"),
    "loramix token": loramix("token"),
    "loramix reference": loramix("reference"),
    "X-LoRA": xlora,
    "Arrow": arrow,
    "Lily": lily,
}


def _strong(mixture: MixtureModel) -> MixtureModel:
    torch.manual_seed(3)
    for gate in mixture.gates.values():
        gate.lift.weight.data = torch.randn(gate.lift.weight.shape) * 4 / gate.width**0.5
        gate.score.weight.data = torch.randn(gate.score.weight.shape) * 4 / gate.config.hidden**0.5
    return mixture.eval()
