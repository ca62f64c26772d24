"""The mixture model: a frozen base, frozen experts, and a trainable gate beside every adapted layer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loramix.call import bound, checkpoint_contexts, recording
from loramix.errors import ExpertError, MixtureError, did_you_mean
from loramix.experts import Expert, check_fits, linear_shape, load_expert
from loramix.gate import GateConfig
from loramix.layer import MixtureLinear
from loramix.routing import attach, fixed_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import ModelOutput


class MixtureModel(nn.Module):
    """One language model that decides, for every input, how much of each expert to use.

    Build it with `from_experts` or `from_pretrained`. Its parameters that require gradients are those of the gates.
    """

    def __init__(
        self,
        base: "PreTrainedModel",
        experts: Sequence[Expert],
        gate: GateConfig,
        *,
        base_name: str,
        revision: str | None,
    ) -> None:
        super().__init__()
        if not experts:
            raise ExpertError("a mixture needs at least one expert")
        for expert in experts:
            check_fits(expert, base)
        self.base, self.experts, self.gate_config = base, tuple(experts), gate
        self.base_name, self.revision = base_name, revision
        base.requires_grad_(False)
        self._wrap()
        attach(base, gate)

    @classmethod
    def from_experts(
        cls,
        base: "str | Path | PreTrainedModel",
        experts: Mapping[str, str | Path],
        *,
        gate: GateConfig | None = None,
        dtype: str = "float32",
    ) -> "MixtureModel":
        """Return an untrained mixture (uniform weights) of PEFT LoRA adapters.

        base: a model name, a path or a loaded model, which is changed in place.
        experts: a folder or Hub id for every expert's name, in order.
        dtype: of the base, where it is not loaded yet.
        """
        from loramix.bases import load_base

        revision: str | None = None
        if isinstance(base, str | Path):
            loaded = load_base(str(base), dtype=dtype)
            model, name, revision = loaded.model, loaded.name, loaded.revision
        else:
            model, name = base, base.config.name_or_path
        read = [load_expert(expert, source) for expert, source in experts.items()]
        return cls(model, read, gate or GateConfig(), base_name=name, revision=revision)

    @classmethod
    def from_pretrained(cls, path: str | Path, base: "str | Path | PreTrainedModel | None" = None) -> "MixtureModel":
        """Return the mixture saved at `path`, a folder or Hub id; `base` replaces the recorded base model."""
        from loramix.checkpoint import load

        return load(path, base)

    def save_pretrained(self, path: str | Path) -> None:
        """Write gates, experts and their order to folder `path`, whole or not at all; the base is only named."""
        from loramix.checkpoint import save

        save(self, Path(path))

    @property
    def expert_names(self) -> list[str]:
        """The experts' names, in the order of the weights' last axis."""
        return [expert.name for expert in self.experts]

    @property
    def layers(self) -> dict[str, MixtureLinear]:
        """The adapted layers by name, in model order."""
        return {module.name: module for module in self.base.modules() if isinstance(module, MixtureLinear)}

    @property
    def config(self) -> "PreTrainedConfig":
        """The base model's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base model lies."""
        device: torch.device = self.base.device
        return device

    def gate_state(self) -> dict[str, Tensor]:
        """Return the gates' parameters, by layer and parameter name."""
        return {
            f"{name}.{key}": tensor
            for name, layer in self.layers.items()
            for key, tensor in layer.gate.state_dict().items()
        }

    @torch.no_grad()
    def load_gate_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the gates' parameters; raises MixtureError unless `state` holds exactly those of this mixture."""
        own = self.gate_state()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise MixtureError(
                f"the gates do not fit: {len(missing)} parameters missing {missing[:2]}, "
                f"{len(unknown)} unknown {unknown[:2]}"
            )
        for key, tensor in own.items():
            if tensor.shape != state[key].shape:
                raise MixtureError(
                    f"gate parameter '{key}' has shape {list(state[key].shape)}, expected {list(tensor.shape)}"
                )
            tensor.copy_(state[key])

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        prompt_mask: Bool[Tensor, "B T"] | None = None,
        **base_inputs: object,
    ) -> "ModelOutput":
        """Return the base model's output, mixed.

        In a decoder-only model the gates read the prompt: `prompt_mask` if given, else what precedes the first label
        that is not -100 (`labels` may cover the last L columns alone), else every token. Further inputs go to the base.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **base_inputs}
        given = {key: value for key, value in inputs.items() if value is not None}
        if prompt_mask is not None:
            given["prompt_mask"] = prompt_mask
        output: ModelOutput = self.base(**given)
        return output

    @torch.no_grad()
    def generate(self, **inputs: object) -> Tensor:
        """Return token ids, as the base model's `generate` does and with its arguments."""
        self._refuse_generation(inputs)
        tokens: Tensor = self.base.generate(**inputs)
        return tokens

    @torch.no_grad()
    def weights(self, **inputs: Tensor) -> dict[str, Float[Tensor, "B E"]]:
        """Return the weights that every adapted layer gives the experts for these prompts, in model order.

        An encoder-decoder model runs its first decoder step if no `decoder_input_ids` are given.
        """
        if self.base.config.is_encoder_decoder and not {"decoder_input_ids", "labels"} & inputs.keys():
            start = self.base.config.decoder_start_token_id
            inputs["decoder_input_ids"] = inputs["input_ids"].new_full((len(inputs["input_ids"]), 1), start)
        with recording() as record:
            self(**inputs, use_cache=False)
        return {name: record[name] for name in self.layers}

    @contextmanager
    def fixed(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Replace all gates' decisions by these weights inside the block; unnamed experts get 0, `{}` is the base."""
        for name in weights:
            if name not in self.expert_names:
                raise MixtureError(
                    f"there is no expert '{name}'{did_you_mean(name, self.expert_names)}; "
                    f"the experts are {self.expert_names}"
                )
        values_E = torch.tensor([float(weights.get(name, 0.0)) for name in self.expert_names])
        with bound(fixed_weights, values_E):
            yield

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, object] | None = None) -> None:
        """Recompute activations in the backward pass; the recomputed layers see the call they were first part of."""
        chosen = dict(activation_checkpointing_kwargs or {})
        if chosen.pop("use_reentrant", False):
            raise MixtureError("gradient checkpointing of a mixture needs use_reentrant=False")
        self.base.activation_checkpointing_enable({**chosen, "use_reentrant": False, "context_fn": checkpoint_contexts})

    gradient_checkpointing_enable = activation_checkpointing_enable

    def _refuse_generation(self, inputs: Mapping[str, object]) -> None:
        if self.gate_config.context == "reference":
            raise MixtureError(
                "the reference gate averages over the whole target, which does not exist yet during generation; "
                "train a gate with context='prompt' to generate"
            )
        chunk = inputs.get("prefill_chunk_size")
        if chunk is None:
            chunk = getattr(inputs.get("generation_config"), "prefill_chunk_size", None)
        if chunk is not None:
            raise MixtureError("a prompt gate needs the whole prompt at once; generate without prefill_chunk_size")

    def _wrap(self) -> None:
        """Put a MixtureLinear in the place of every layer that an expert adapts."""
        adapted = {layer for expert in self.experts for layer in expert.updates}
        for name, module in list(self.base.named_modules()):
            if name not in adapted:
                continue
            weight = module.weight
            dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
            parent, _, attribute = name.rpartition(".")
            layer = MixtureLinear(
                module,
                name,
                [expert.updates.get(name) for expert in self.experts],
                self.gate_config,
                gate_width=self._gate_width(name, module),
                dtype=dtype,
                device=weight.device,
            )
            setattr(self.base.get_submodule(parent), attribute, layer)

    def _gate_width(self, name: str, module: nn.Module) -> int:
        """Return the width of what the layer's gate reads: its input, or the encoder's output in a decoder."""
        shape = linear_shape(module)
        assert shape is not None, "check_fits lets linear layers pass only"
        in_decoder = self.base.config.is_encoder_decoder and not any(
            module is other for other in self.base.get_encoder().modules()
        )
        if in_decoder and self.gate_config.context == "prompt":
            return int(self.base.config.hidden_size)
        return shape[0]
