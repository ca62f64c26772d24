"""The mixture model: a frozen base, frozen experts, and trainable gates beside adapted layers."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from loramix.bases.loading import load_base, load_tokenizer
from loramix.config import GateConfig, Prompting
from loramix.data.conversations import Conversation, Message
from loramix.errors import ExpertError, LoramixError, MixtureError
from loramix.mixture.exporting import export
from loramix.mixture.fitting import fitted
from loramix.mixture.folding import Folding
from loramix.mixture.gate import ContextGate, load_state, state_of
from loramix.mixture.generation import folds, prompt_of, refuse_generation
from loramix.mixture.groups import check_readers, check_token_weights, roles
from loramix.mixture.hooks import Backbone, attach, leave_labels
from loramix.mixture.inputs import asked, text_inputs, with_first_step
from loramix.mixture.layer import MixtureLinear
from loramix.mixture.layout import observe
from loramix.mixture.linear import input_device
from loramix.mixture.loaded_adapters import take_adapters
from loramix.mixture.means import Prototypes
from loramix.mixture.pretrained import TransformersModel, refuse_kept_labels, scale_loss, take_items
from loramix.mixture.problems import loose_state_problem
from loramix.mixture.state import current, fixing, generating, holding, reading, recording
from loramix.mixture.weights import (
    FixedWeights,
    HeldRows,
    OpenBlocks,
    RoutingWeights,
    Weights,
    by_hand,
    index_of,
)
from loramix.mixture.wrapping import (
    adapted_layers,
    check_plain,
    mixture_layers,
    new_gates,
    unwrap,
    wrap,
)
from loramix.storage.checkpoint import save_in_checkpoint
from loramix.storage.experts import Expert, load_expert
from loramix.storage.format import Parts, load, push, save

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import ModelOutput


class MixtureModel(TransformersModel):
    """One language model that decides, for every input, how much of each expert to use.

    Build it with `from_experts` or `from_pretrained`. Its parameters that require gradients are
    those of the gates.
    """

    def __init__(
        self,
        base: "PreTrainedModel",
        experts: Sequence[Expert],
        gate: GateConfig,
        *,
        base_name: str,
        revision: str | None,
        prompting: Prompting | None = None,
    ) -> None:
        super().__init__()
        if not experts:
            raise ExpertError("a mixture needs at least one expert")
        check_plain(base)
        experts = [fitted(expert, base) for expert in experts]
        self._calls = observe(base)
        if problem := loose_state_problem(gate, self._calls.states if self._calls else ()):
            raise MixtureError(problem)
        self.base, self.experts, self.gate_config = base, tuple(experts), gate
        self.base_name, self.revision = base_name, revision
        self.prompting = prompting or Prompting()
        self.prototypes: Prototypes | None = None  # of the experts' prompts, where they are known
        self._folding, self._blocks = Folding(), OpenBlocks()
        planned = roles(base, adapted_layers(experts), gate.scope, self._calls)
        check_token_weights(planned, gate, self._calls)
        gates = new_gates(base, planned, gate, len(experts))
        trainable = [parameter for parameter in base.parameters() if parameter.requires_grad]
        base.requires_grad_(False)
        try:
            wrap(base, planned, experts, gates, self._calls)
        except LoramixError:  # leave the caller's base as it was
            unwrap(base)
            for parameter in trainable:
                parameter.requires_grad_(True)
            raise
        attach(base, gate)
        self.register_forward_pre_hook(leave_labels, with_kwargs=True)

    @classmethod
    def from_experts(
        cls,
        base: "str | Path | PreTrainedModel",
        experts: Mapping[str, str | Path],
        *,
        gate: GateConfig | None = None,
        dtype: str = "float32",
        lossy: Sequence[str] = (),
    ) -> "MixtureModel":
        """Return an untrained mixture (uniform weights) of PEFT LoRA adapters.

        base: a model name, a path or a loaded model, which is changed in place.
        experts: a folder or Hub id for every expert's name, in order.
        dtype: of the base, where it is not loaded yet.
        lossy: what may be left out of adapters that hold more than low-rank updates, see
            `loramix.storage.experts.LOSSY`.
        """
        read = [load_expert(expert, source, lossy=lossy) for expert, source in experts.items()]
        revision: str | None = None
        if isinstance(base, str | Path):
            loaded = load_base(str(base), dtype=dtype)
            model, name, revision = loaded.model, loaded.name, loaded.revision
        else:
            model, name = base, base.config.name_or_path
        return cls(model, read, gate or GateConfig(), base_name=name, revision=revision)

    @classmethod
    def from_peft(
        cls, model: "PeftModel", *, gate: GateConfig | None = None, lossy: Sequence[str] = ()
    ) -> "MixtureModel":
        """Return an untrained mixture of the adapters of a loaded PeftModel, under their names.

        model: loses its adapters; its base becomes the mixture's. lossy: as in `from_experts`.
        """
        base, experts = take_adapters(model, lossy=lossy)
        return cls(
            base, experts, gate or GateConfig(), base_name=base.config.name_or_path, revision=None
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        base: "str | Path | PreTrainedModel | None" = None,
        *,
        revision: str | None = None,
        dtype: str = "float32",
    ) -> "MixtureModel":
        """Return the mixture saved at `path`, a folder or Hub id; `base` replaces the recorded base
        model.

        dtype: of the base, where it is not loaded yet.
        """
        saved = load(path, revision=revision)
        model, base_revision = _base(saved, base, dtype)
        mixture = cls(
            model,
            saved.experts,
            saved.gate,
            base_name=saved.base,
            revision=base_revision,
            prompting=saved.prompting,
        )
        mixture.load_gate_state(saved.gate_state)
        if saved.prototypes is not None:
            mixture.prototypes = Prototypes.from_state(saved.prototypes)
        mixture.eval()
        return mixture

    def save_pretrained(
        self,
        path: str | Path,
        *,
        experts: Literal["copy", "reference"] = "copy",
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool | None = None,
    ) -> None:
        """Write gates, experts and their order to folder `path`, whole or not at all; the base is
        only named.

        experts: `reference` stores the source of each (and, of the Hub, the commit) instead of a
            copy.
        state_dict, is_main_process: as transformers' Trainer passes them: the parameters where they
            are gathered from several processes, and whether this is the one that writes. The
            mixture then becomes part of a checkpoint, see `loramix.storage.checkpoint`.
        """
        if is_main_process is False:
            return
        parts = Parts(
            base=self.base_name,
            revision=self.revision,
            experts=self.experts,
            gate=self.gate_config,
            gate_state=self.gate_state(),
            prompting=self.prompting,
            prototypes=self.prototypes.state() if self.prototypes else None,
        )
        if is_main_process is None:
            save(parts, Path(path), experts=experts)
            return
        names = self._gate_parameters()
        if state_dict:
            gathered = {key: state_dict[name] for key, name in names.items()}
            parts = replace(parts, gate_state=gathered)
        save_in_checkpoint(parts, Path(path), names, experts=experts)

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the mixture to a repository of the Hub, made if needed, and return the commit's
        address.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "mixture"
            self.save_pretrained(folder)
            return push(folder, repository, private=private, token=token)

    def add_expert(
        self,
        name: str,
        source: str | Path,
        *,
        lossy: Sequence[str] = (),
        hidden: int | None = None,
    ) -> None:
        """Add a PEFT adapter as the last expert; answers stay as they were until gates are trained.

        With a few of its prompts, `loramix.mixture.prototypes.add_expert` gives it those at once.
        The gates are new objects afterwards, so an optimizer that was made before does not train
        them.

        hidden: the gates' hidden units from now on.
        """
        if name in self.expert_names:
            raise MixtureError(
                f"there is an expert '{name}' already; the experts are {self.expert_names}"
            )
        expert = load_expert(name, source, lossy=lossy)
        self._rearrange([*self.experts, expert], [*range(len(self.experts)), None], hidden=hidden)

    def remove_expert(self, name: str, *, hidden: int | None = None) -> None:
        """Take an expert away; the weights of the others keep their proportions."""
        index = index_of(name, self.expert_names)
        order = [other for other in range(len(self.experts)) if other != index]
        if not order:
            raise MixtureError(f"'{name}' is the only expert, and a mixture needs at least one")
        self._rearrange([self.experts[other] for other in order], order, hidden=hidden)

    def widen(self, hidden: int) -> None:
        """Give every gate at least this many hidden units; further ones have no effect yet."""
        if hidden > self.gate_config.hidden:
            self._rearrange(self.experts, range(len(self.experts)), hidden=hidden)

    def _rearrange(
        self, experts: Sequence[Expert], order: Sequence[int | None], *, hidden: int | None
    ) -> None:
        """Exchange the experts; on an error nothing changes.

        order: expert i of the new ones is known to the gates as their expert order[i], or not yet.
        """
        old, config = self.gates, self.gate_config
        before = roles(self.base, adapted_layers(self.experts), config.scope, self._calls)
        unwrap(self.base)
        try:
            experts = [fitted(expert, self.base) for expert in experts]
            after = roles(self.base, adapted_layers(experts), config.scope, self._calls)
            check_readers(before.values(), after.values())
            check_token_weights(after, config, self._calls)
            gates = {**new_gates(self.base, after, config, len(self.experts)), **old}
            gates = {
                reader: gate.rearranged(order, hidden=hidden) for reader, gate in gates.items()
            }
            wrap(self.base, after, experts, gates, self._calls)
        except LoramixError:
            unwrap(self.base)
            wrap(self.base, before, self.experts, old, self._calls)
            raise
        self.experts = tuple(experts)
        self.gate_config = next(iter(gates.values())).config
        self.prototypes = self.prototypes and self.prototypes.rearranged(order)

    def export(
        self,
        path: str | Path,
        *,
        weights: Mapping[str, float] | None = None,
        prompt: str | Mapping[str, Tensor] | None = None,
        merged: bool = False,
    ) -> None:
        """Write the mixture at fixed weights to folder `path`, as a PEFT adapter or, `merged`, as a
        whole model.

        weights: of every expert, in all layers; unnamed experts get 0.
        prompt: a text, or the model's inputs for one (for several rows: their mean), whose weights
            are taken.

        Raises MixtureError unless exactly one of both is given, or if the gates do not decide once
        for each prompt.
        """
        export(self, Path(path), weights=weights, prompt=prompt, merged=merged)

    @property
    def expert_names(self) -> list[str]:
        """The experts' names, in the order of the weights' last axis."""
        return [expert.name for expert in self.experts]

    @property
    def layers(self) -> dict[str, MixtureLinear]:
        """The adapted layers by name, in model order."""
        return {layer.name: layer for layer in mixture_layers(self.base)}

    @property
    def gates(self) -> dict[str, ContextGate]:
        """The gates by reader: every adapted layer, or the first called of those that share one."""
        return {name: layer.gate for name, layer in self.layers.items() if layer.gate is not None}

    @property
    def config(self) -> "PreTrainedConfig":
        """The base model's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base model takes its inputs."""
        return input_device(self.base)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the base."""
        return load_tokenizer(self.base_name, revision=self.revision)

    def text_inputs(
        self, text: str | Sequence[Message] | Conversation, *, task: str | None = None
    ) -> dict[str, Tensor]:
        """Return the model's inputs, tensors (1, T), for a prompt, for the input of a task, or for
        the messages of a conversation in the tokenizer's chat template.
        """
        return text_inputs(
            self.tokenizer,
            asked(self.tokenizer, self.prompting, text, task),
            causal=not self.config.is_encoder_decoder,
            chat=self.prompting.chat,
            device=self.device,
        )

    @property
    def base_model(self) -> "Backbone | PreTrainedModel":
        """The model without its head, if it is decoder-only; else the base."""
        if self.config.is_encoder_decoder:
            return self.base
        return Backbone(self.base, self.gate_config)

    def gate_state(self) -> dict[str, Tensor]:
        """Return the gates' parameters, by layer and parameter name."""
        return state_of(self.gates)

    def load_gate_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the gates' parameters; raises MixtureError unless `state` holds exactly those."""
        load_state(self.gates, state)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load a state of the whole model or, from a checkpoint of Trainer, that of the gates."""
        if not state_dict or any(name.startswith("base.") for name in state_dict):
            loaded: _IncompatibleKeys = super().load_state_dict(
                state_dict, strict=strict, assign=assign
            )
            return loaded
        self.load_gate_state(state_dict)
        return _IncompatibleKeys([], [])

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """What a checkpoint of Trainer leaves out: all but the gates."""
        return set(self.state_dict()) - set(self._gate_parameters().values())

    def _gate_parameters(self) -> dict[str, str]:
        """Return the names that `state_dict` has for those of `gate_state`."""
        names: dict[str, str] = {}
        for reader, gate in self.gates.items():
            names |= {f"{reader}.{key}": f"base.{reader}.gate.{key}" for key in gate.state_dict()}
        return names

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        prompt_mask: Bool[Tensor, "B T"] | None = None,
        *,
        weights: Weights | None = None,
        # Trainer drops the columns of a data set that are not named here.
        position_ids: Int[Tensor, "B T"] | None = None,
        decoder_input_ids: Int[Tensor, "B L"] | None = None,
        decoder_attention_mask: Tensor | None = None,
        **base_inputs: object,
    ) -> "ModelOutput":
        """Return the base model's output, mixed.

        In a decoder-only model the gates read the prompt: `prompt_mask` if given, else what
        precedes the first label that is not -100 (`labels` may cover the last L columns alone),
        else every token. Further inputs go to the base.

        weights: replace the gates' decisions, as `fixed` does, but in whichever thread this runs.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "prompt_mask": prompt_mask,
            "position_ids": position_ids,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            **base_inputs,
        }
        given = {key: value for key, value in inputs.items() if value is not None}
        # A trainer that puts another forward in the place of this one, as TRL does, has labels.
        learning = "forward" in vars(self) and self.training and torch.is_grad_enabled()
        with self._blocks.of_call(weights, self.expert_names):
            if learning or "num_items_in_batch" in given:
                refuse_kept_labels(self.base, self.gate_config, given)
            items = take_items(self.base, given)
            output: ModelOutput = self.base(**given)
        if items is not None and labels is not None:
            scale_loss(output, labels if self.config.is_encoder_decoder else labels[:, 1:], items)
        return output

    @torch.no_grad()
    def generate(
        self,
        *args: object,
        fold: bool | None = None,
        weights: Weights | None = None,
        **inputs: object,
    ) -> "Tensor | ModelOutput":
        """Return what the base model's `generate` returns: token ids, or an output with more.

        fold: whether to add the experts, at the weights of the prompt, to copies of the adapted
            layers' weights, so that generated tokens cost what they cost the base. It takes one
            prompt (or fixed weights, the same for all rows), and the memory of these layers once
            more, which is kept for the next time, until `train()`. None: where it can be done and
            the answer may be long enough to pay for it.
        weights: replace the gates' decisions, as `fixed` does, but in whichever thread this runs.
        """
        if args:
            inputs = {"inputs": args[0], **inputs}
        with self._blocks.of_call(weights, self.expert_names):
            fixed = current().fixed
            if fixed is None:
                refuse_generation(self.gate_config, inputs)
            prompt = prompt_of(inputs)
            folding = self._folding if folds(self.gate_config, self.base, inputs, fold) else None
            steps = None if fixed is None else replace(fixed, updates={})
            width = None if prompt is None else prompt.shape[1]
            with generating(width, folding), fixing(steps):
                tokens: Tensor | ModelOutput = self.base.generate(**inputs)
        return tokens

    def train(self, mode: bool = True) -> "MixtureModel":
        """Set the mode of every module; to train also gives back the memory kept for folding."""
        if mode:
            self._folding.clear()
        super().train(mode)
        return self

    @torch.no_grad()
    def weights(self, **inputs: object) -> dict[str, Float[Tensor, "B ... E"]]:
        """Return the weights that every adapted layer gives the experts for these inputs.

        In model order, of shape (B, E), or (B, T, E) where the gates decide for every token; the
        keys and values of cross-attention have the encoder's tokens. An encoder-decoder model runs
        its first decoder step if no `decoder_input_ids` are given.
        """
        used = self._used(inputs)
        if self.gate_config.per_token and current().fixed is None:
            return {name: each.weights_BTE for name, each in used.items()}
        return {name: each.weights_BTE[:, 0] for name, each in used.items()}

    @torch.no_grad()
    def mean_weights(self, **inputs: object) -> dict[str, Float[Tensor, "B E"]]:
        """Return `weights`, averaged over each row's real tokens where there are some for each."""
        return {name: each.row_mean for name, each in self._used(inputs).items()}

    def _used(self, inputs: Mapping[str, object]) -> dict[str, RoutingWeights]:
        inputs = {**inputs, "use_cache": False}
        if self.config.is_encoder_decoder:
            inputs = with_first_step(inputs, start=self.config.decoder_start_token_id)
        with recording() as record:
            self(**inputs)
        # With `encoder_outputs` no encoder runs, and its layers have no weights.
        return {name: record[name] for name in self.layers if name in record}

    def fixed(
        self, weights: Mapping[str, float] | Sequence[Mapping[str, float]]
    ) -> AbstractContextManager[None]:
        """Replace all gates' decisions by these weights inside the block, in this thread.

        Unnamed experts get 0; `{}` is the base. A list gives every row of the batch its own
        weights. For a call that runs in another thread, pass it `weights=`.

        Raises MixtureError for an unknown expert and, when the model is called, for another number
        of rows.
        """
        return self._blocks.fixing(by_hand(weights, self.expert_names))

    def fixed_layers(
        self, weights: Mapping[str, Float[Tensor, "B E"]]
    ) -> AbstractContextManager[None]:
        """Replace all gates' decisions inside the block, for every layer and row on its own.

        weights: of every layer, as `mean_weights` returns them, so that the decisions on one input
        can be held for another.
        """
        missing = sorted(self.layers.keys() - weights.keys())
        if missing:
            raise MixtureError(
                f"fixed weights for {len(missing)} layers are missing, such as '{missing[0]}'"
            )
        return self._blocks.fixing(FixedWeights(dict(weights)))

    def holding(self, rows: Sequence[Mapping[str, float] | None]) -> AbstractContextManager[None]:
        """Replace the gates' decisions in some rows of the batch inside the block, in this thread.

        rows: of every row its weights by hand, or None to let the gates decide. They are no part of
            a cache: hold the same rows in every call that goes on with it.

        Raises MixtureError for an unknown expert.
        """
        return holding(HeldRows.of(rows, self.expert_names))

    def reading(
        self, prompt_lengths: int | Sequence[int] | Int[Tensor, " B"]
    ) -> AbstractContextManager[None]:
        """Let the gates of a decoder-only model read the first tokens of every row as its prompt.

        For code that scores a prompt and its continuation in one call and passes no labels, such as
        evaluation harnesses: inside the block the gates do not read the continuation.

        prompt_lengths: the number of each row's prompt tokens, padding not counted; one for all
            rows, or one for each.
        """
        lengths_B = torch.as_tensor(prompt_lengths).reshape(-1)
        return reading(lengths_B)


def _base(
    saved: Parts, base: "str | Path | PreTrainedModel | None", dtype: str
) -> "tuple[PreTrainedModel, str | None]":
    """Return the base that is given, loaded if it is a name, else the recorded one; and its
    commit.
    """
    if base is not None and not isinstance(base, str | Path):
        return base, None
    name, revision = (saved.base, saved.revision) if base is None else (str(base), None)
    loaded = load_base(name, revision=revision, dtype=dtype)
    return loaded.model, loaded.revision
