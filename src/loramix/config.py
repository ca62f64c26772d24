"""What a mixture is made with: the settings of its gates, and how its prompts look."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramix.errors import MixtureError, did_you_mean

Context = Literal["prompt", "running", "token", "reference"]
Scope = Literal["layer", "block", "model"]
Pooling = Literal["mean", "attention"]
Activation = Literal["softmax", "sigmoid", "top-k", "top-1"]
Mixing = Literal["output", "parameter"]

PLACEHOLDER = "{input}"  # in a prompt template, where the input goes


class GateConfig(BaseModel):
    """What a gate reads and how its weights mix the experts.

    context: `prompt` pools the layer's input over the prompt tokens (in a decoder with
        cross-attention: the encoder's output), so that the weights are fixed before the first
        generated token. `running` pools the tokens so far, so that the weights follow the text.
        `token` lets every token decide for itself. `reference` averages the scores of all valid
        tokens, future ones included; it scores given targets but cannot generate through a decoder.
    scope: one gate for every adapted `layer`, for every `block`, or for the whole `model` (an
        encoder-decoder has two: one for each side). A shared gate reads at the first adapted layer
        of its block or side.
    pooling: how a `prompt` gate makes one context of many tokens: by their `mean`, or by
        `attention` of a learned query, to which mean and last token are added, see
        `loramix.mixture.pooling`. In the mean, a few words of request are lost in a long text.
        Other contexts do not use it.
    hidden: width of the gate's hidden layer.
    activation: `softmax`; `sigmoid`, where every expert has its own weight in (0, 1); `top-k`, a
        softmax of which the `k` largest weights are kept and scaled to sum to 1; `top-1`, which
        keeps one. What is not kept gets gradients as if it had been (straight-through: Bengio et
        al. 2013, arXiv:1308.3432).
    k: how many experts `top-k` keeps; other activations do not use it.
    carry: whether a gate decides by the scores of all gates before it in the stack as well as by
        its own, see `loramix.mixture.gate.Evidence`. Such gates are right more often, and wrong in
        all layers at once. Not of a `reference` gate.
    first_pass: whether the base alone reads the prompt first, and all gates decide together from
        that, once for all layers, see `loramix.mixture.first_pass`. Gates that decide one by one
        read what earlier decisions made of the text, and a wrong one confirms itself. It costs one
        more pass over each prompt. Of `prompt` gates, without `carry`.
    temperature: divides the scores before the activation; below 1 sharpens.
    base_slot: whether the base takes part as one more expert that adds nothing: the gate can then
        turn all experts off.
    mixing: `output` adds Σ_e g_e s_e B_e A_e x; `parameter` adds (Σ_e g_e s_e B_e)(Σ_e g_e A_e) x,
        for equal ranks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    context: Context = "prompt"
    scope: Scope = "layer"
    pooling: Pooling = "mean"
    hidden: int = Field(default=8, ge=1, le=2**14)
    activation: Activation = "softmax"
    k: int = Field(default=2, ge=1)
    carry: bool = False
    first_pass: bool = False
    temperature: float = Field(default=1.0, gt=0)
    base_slot: bool = False
    mixing: Mixing = "output"

    @model_validator(mode="after")
    def _consistent(self) -> "GateConfig":
        if self.carry and self.context == "reference":
            raise ValueError("carry: a reference gate decides alone; leave it out")
        if self.first_pass and self.context != "prompt":
            raise ValueError(
                f"first_pass: '{self.context}' gates do not decide once for a whole prompt, as a "
                "first pass needs; set first_pass=False, or use context='prompt'"
            )
        if self.first_pass and self.carry:
            raise ValueError(
                "first_pass: these gates decide by the scores of all gates already; leave out "
                "carry, or set first_pass=False"
            )
        if self.base_slot and self.activation == "sigmoid":
            raise ValueError(
                "base_slot: a sigmoid gate can turn every expert off by itself; use it with softmax"
            )
        return self

    @classmethod
    def reference(cls) -> "GateConfig":
        """Return the reference gate: non-causal mean of the scores, hidden width 4, matrices mixed
        separately.
        """
        return cls(context="reference", hidden=4, mixing="parameter")

    @property
    def per_token(self) -> bool:
        """Whether the weights may differ between the tokens of a row."""
        return self.context in ("running", "token")

    @property
    def sparse(self) -> bool:
        """Whether the gates give most experts a weight of exactly zero."""
        return self.activation in ("top-k", "top-1")


def gates_from_prompts(chosen: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of gates that start from prompts of every expert.

    chosen: some of the fields of GateConfig. What they leave open is what followed requests best
        wherever it was measured: gates that decide once for a prompt do so together, by a first
        pass; such gates attend to what asks; and gates that attend are shared by a block.
    """
    once = chosen.get("context", "prompt") == "prompt" and not chosen.get("carry")
    first_pass = chosen.get("first_pass", once)
    pooling = chosen.get("pooling", "attention" if first_pass else "mean")
    scope = chosen.get("scope", "block" if pooling == "attention" else "layer")
    return {**chosen, "first_pass": first_pass, "pooling": pooling, "scope": scope}


class Prompting(BaseModel):
    """Whether prompts go through the tokenizer's chat template, and the prompt template of every
    task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat: bool = False
    templates: Mapping[str, str] = {}

    def render(self, text: str, task: str | None) -> str:
        """Return the prompt of `task` for an input; without a task, `text` is the prompt."""
        if task is None:
            return text
        if task not in self.templates:
            raise MixtureError(
                f"this mixture has no prompt for a task "
                f"'{task}'{did_you_mean(task, self.templates)}; "
                f"it has: {', '.join(self.templates) or 'none'}"
            )
        return fill(self.templates[task], text)


def fill(template: str, text: str) -> str:
    """Return the prompt for one input; braces in `text` and other braces in the template mean
    nothing.
    """
    before, after = template.split(PLACEHOLDER)
    return before + text + after
