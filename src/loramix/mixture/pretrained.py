"""What the tools of transformers ask of a model, answered for a mixture by its base.

`Trainer`, `pipeline` and TRL tell by a model's class whether it saves itself and generates. They
also ask for what only the base knows: its embeddings, its generation, how its loss is scaled.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

from loramix.config import GateConfig
from loramix.errors import MixtureError
from loramix.mixture.call import checkpoint_contexts
from loramix.mixture.state import current

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.modeling_outputs import ModelOutput

# Models by class name that a pipeline takes without logging an error.
SUPPORTED_PEFT_TASKS["text-generation"].append("MixtureModel")


class TransformersModel(PreTrainedModel):  # type: ignore[misc]
    """A model of transformers around another one, its base."""

    base_model_prefix = "base"
    output_modalities = ("text",)

    def __init__(self) -> None:
        # That of PreTrainedModel would choose attention and generation anew for the base's
        # configuration; what else it sets, the properties below answer.
        nn.Module.__init__(self)

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether there is a `generate`."""
        return True

    @property
    def generation_config(self) -> "GenerationConfig":
        """How the base generates unless told otherwise."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, config: "GenerationConfig") -> None:
        self.base.generation_config = config

    @property
    def name_or_path(self) -> str:
        """Where the base model comes from."""
        return str(self.base.name_or_path)

    @property
    def main_input_name(self) -> str:
        """The name of the base's first input."""
        return str(self.base.main_input_name)

    @property
    def hf_device_map(self) -> dict[str, object]:
        """The devices of the base's parts, if it is spread; else AttributeError, as in the base."""
        devices: dict[str, object] = self.base.hf_device_map
        return devices

    @property
    def loss_type(self) -> str | None:
        """The base's kind of loss, by which Trainer knows whether labels are shifted."""
        kind: str | None = self.base.loss_type
        return kind

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss is divided by `num_items_in_batch`.

        It is unless the base says that its own is not; see `take_items`.
        """
        return bool(getattr(self.base, "accepts_loss_kwargs", True))

    def _get_name(self) -> str:
        """Return the base's class, by which Trainer smooths labels that are shifted."""
        return type(self.base).__name__

    def __repr__(self) -> str:
        shown: str = super().__repr__()
        return type(self).__name__ + shown.removeprefix(self._get_name())

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's input embeddings."""
        embeddings: nn.Module = self.base.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the base's head."""
        head: nn.Module | None = self.base.get_output_embeddings()
        return head

    def get_encoder(self, *args: str) -> nn.Module:
        """Return the base's encoder."""
        encoder: nn.Module = self.base.get_encoder(*args)
        return encoder

    def get_decoder(self) -> nn.Module:
        """Return the base's decoder."""
        decoder: nn.Module = self.base.get_decoder()
        return decoder

    def tie_weights(self, *args: object, **settings: object) -> None:
        """Tie the base's weights."""
        self.base.tie_weights(*args, **settings)

    def add_adapter(self, *args: object, **settings: object) -> None:
        """Refuse adapters of PEFT beside the experts."""
        raise MixtureError(
            "an adapter cannot be added to a mixture as PEFT adds one to a model; "
            "use mixture.add_expert(name, folder)"
        )

    load_adapter = add_adapter

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the base can recompute activations."""
        return bool(self.base.supports_gradient_checkpointing)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, object] | None = None, **how: object
    ) -> None:
        """Recompute activations in the backward pass; the recomputed layers see the call they were
        first part of.

        how: `every_n_layers` and `offload`, as the base takes them.
        """
        chosen = dict(activation_checkpointing_kwargs or {})
        if chosen.pop("use_reentrant", False):
            raise MixtureError("gradient checkpointing of a mixture needs use_reentrant=False")
        self.base.activation_checkpointing_enable(
            {**chosen, "use_reentrant": False, "context_fn": checkpoint_contexts}, **how
        )

    def activation_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self.base.activation_checkpointing_disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, object] | None = None, **how: object
    ) -> None:
        """Recompute activations; the older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **how)

    gradient_checkpointing_disable = activation_checkpointing_disable


def refuse_kept_labels(
    base: PreTrainedModel, config: GateConfig, inputs: Mapping[str, object]
) -> None:
    """Raise MixtureError if a trainer keeps the labels for a loss of its own, which leaves the
    gates of a decoder-only model without a word on what is the prompt.
    """
    if config.context != "prompt" or base.config.is_encoder_decoder:
        return
    state = current()
    told = "labels" in inputs or "prompt_mask" in inputs or state.prompt_lengths is not None
    if not told and state.fixed is None:
        raise MixtureError(
            "the trainer keeps the labels for a loss of its own (label_smoothing_factor, "
            "compute_loss_func), so the gates cannot tell the prompt from the answer that is to be "
            "learned; give every sample a prompt_mask, true for the tokens of its prompt"
        )


def take_items(base: PreTrainedModel, inputs: dict[str, object]) -> Tensor | int | None:
    """Take `num_items_in_batch` from the inputs where the mixture itself has to divide the loss."""
    items = inputs.get("num_items_in_batch")
    if not isinstance(items, Tensor | int) or _divides_loss(base):
        return None
    del inputs["num_items_in_batch"]
    return items


def scale_loss(output: "ModelOutput", labels: Tensor, items: Tensor | int) -> None:
    """Make the mean loss of a batch its share of the mean over `items` labels: those of all batches
    that are accumulated.

    labels: those that the loss is the mean of, -100 where there is none.
    """
    output.loss = output.loss * (labels != -100).sum() / items


def _divides_loss(base: PreTrainedModel) -> bool:
    """Return whether the base itself divides its loss by `num_items_in_batch`.

    Many take the argument and drop it, so that Trainer's gradients are as many times too large as
    it accumulates batches. Those that use it hand it to `loss_function`.
    """
    declared = getattr(base, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    return "loss_function" in inspect.unwrap(type(base).forward).__code__.co_names
