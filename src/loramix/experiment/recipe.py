"""A recipe: everything that a run depends on, as checked settings; see `reading` for its YAML."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from loramix.bases.spreading import DeviceMap, Quantisation
from loramix.config import Context, GateConfig, gates_from_prompts
from loramix.data.tasks import NO_EXPERT, OWN, Task
from loramix.mixture.problems import Init
from loramix.storage.hub import exists

STAGES = ("prepare", "benchmark", "finetune", "lora", "gate", "evaluate", "report")

ModelName = Literal[
    "base",
    "finetune",
    "experts",
    "oracle",
    "joint",
    "joint-small",
    "uniform",
    "static",
    "cat",
    "ties",
    "dare",
    "lorahub",
    "arrow",
    "xlora",
    "retriever",
    "mixtures",
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as NumPy takes them
TestSet = Literal["named", "bare", "paraphrased", "mixed", "crossed", "unknown"]


class Strict(BaseModel):
    """Frozen settings that refuse unknown keys, and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseSpec(Strict):
    """The base model and its number format.

    dtype: `fast` is bfloat16 where the accelerator or processor multiplies in it, else float32.
    chat: whether prompts go through the tokenizer's chat template.
    device_map: how a base that is larger than one device is spread over devices, memory and disk;
        None: not at all. Results do not depend on it, except by rounding.
    quantisation: of the base's linear layers; full finetuning leaves it out.
    """

    name: str = "smollm2-135m"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "fast"] = "float32"
    chat: bool = False
    device_map: DeviceMap | None = None
    quantisation: Quantisation | None = None


class ExpertSpec(Strict):
    """A given adapter, trained elsewhere; a text alone is its source.

    source: a folder, relative to the current folder, or a Hub id, see
        `loramix.storage.adapter_files.find_adapter`.
    subfolder: of the source.
    lossy: the parts of it that are left out, see `loramix.storage.experts.LOSSY`.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    subfolder: str | None = None
    lossy: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _source_alone(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def place(self) -> str:
        """The source and the folder in it, in the one text that names both."""
        if self.subfolder is None:
            return self.source
        if exists(self.source):
            return f"{self.source.rstrip('/')}/{self.subfolder}"
        repository, at, revision = self.source.partition("@")
        return f"{repository}/{self.subfolder}{at}{revision}"


class TrainSpec(Strict):
    """A training of at most `epochs` passes over the training samples.

    patience: epochs without a better validation loss, after which it stops early.

    accumulation: batches to one step of the optimizer.
    train_samples, validation_samples: the most samples of every task; None: the whole split.
    gradient_checkpointing: less memory for more computation.
    group_by_length: samples of similar length in one batch, which needs less padding.
    """

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adafactor", "adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)  # of the optimizer
    patience: int = Field(default=5, ge=1)
    train_samples: int | None = Field(default=None, ge=1)
    validation_samples: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    group_by_length: bool = True


class FinetuneSpec(TrainSpec):
    """Full finetuning: every parameter of the base."""

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(default=3e-4, gt=0)


class LoraSpec(TrainSpec):
    """One LoRA adapter for every task that trains its own.

    targets: names of linear layers; None: q, k, v and o of every attention block.
    """

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(default=1e-3, gt=0)
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class GateSpec(TrainSpec, GateConfig):
    """The gates of the mixture and their training.

    init: their start: at the uniform mixture (`zero`), at the `prototype` of the first training
        prompts of each expert's tasks, in their own and in neutral wordings, at their plain `mean`
        (softer), or at the directions that each adapter amplifies most (`arrow`); see
        `loramix.mixture.prototypes`.
    examples: the prompts of every task of which prototypes and means are made.
    rates: by `width`, each weight learns at the learning rate over the width of what it reads, so
        that a step moves the scores by no more than a few learning rates; `equal` is one rate for
        all.
    epochs: of the training; with 0, gates stay where they start.
    keep_start: whether training is undone where validation samples show no gain by it.
    first_pass, pooling, scope: gates that start from the prompts of a `prototype` have those of
        `loramix.config.gates_from_prompts` unless told otherwise; others, those of GateConfig.
    entropy, balance, supervised: coefficients of the auxiliary losses, see
        `loramix.experiment.training.gate_losses`.
    bare: the share of the training prompts that are the input alone, without the task's prompt
        around it. Gates that see some cannot win by reading the task's name.
    """

    epochs: int = Field(default=3, ge=0)
    learning_rate: float = Field(default=3e-2, gt=0)
    patience: int = Field(default=10, ge=1)
    context: Context = "prompt"
    init: Init = "prototype"
    examples: int = Field(default=16, ge=1)
    rates: Literal["width", "equal"] = "width"
    keep_start: bool = True
    entropy: float = Field(default=0.0, ge=0)
    balance: float = Field(default=0.0, ge=0)
    supervised: float = Field(default=0.0, ge=0)
    bare: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _by_start(cls, given: Any) -> Any:
        started = isinstance(given, Mapping) and given.get("init", "prototype") == "prototype"
        return gates_from_prompts(given) if started else given

    @property
    def config(self) -> GateConfig:
        """The settings of the gates alone."""
        return GateConfig.model_validate(self.model_dump(include=set(GateConfig.model_fields)))

    def changed(self, changes: Mapping[str, JsonValue]) -> "GateSpec":
        """Return these settings with `changes`, and what follows from those where these follow.

        Raises ValidationError for unknown keys and impossible settings.
        """
        told = self.model_dump()
        for following in ("scope", "pooling", "first_pass"):  # each from those after it
            value = told.pop(following)
            if getattr(GateSpec.model_validate(told), following) != value:
                told[following] = value
        return GateSpec.model_validate({**told, **changes})


class GenerationSpec(Strict):
    """Generation of answers. Their length is bounded by the task's `max_new_tokens`."""

    batch_size: int = Field(default=16, ge=1)
    num_beams: int = Field(default=1, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    test_samples: int | None = Field(default=None, ge=1)


class EvaluationSpec(Strict):
    """The encoder of BERTScore: a name or folder; `minilm-l6` is the embedded one."""

    encoder: str = "minilm-l6"


class ComparisonSpec(Strict):
    """Models and test sets of a comparison; see `loramix.comparison`.

    models: `mixtures` stands for those below, `experts` for every expert on its own, also on the
        tasks of others.
    mixtures: gated mixtures by name, each with its changes of the recipe's `gate`; trained once for
        every seed. One with the context `reference` is the reference gate, of which only the
        training is the recipe's.
    seeds: of the gates' training; everything else is trained once, with the recipe's seed.
    test_sets: `named` is the withheld split; `bare` the same without the prompt around the input;
        `paraphrased` the same with other wordings of the prompt; `mixed` asks for one task about
        the inputs of another, where an answer's form can be checked; `crossed` asks so for every
        task, to see which expert is followed; `unknown` asks for a task that no expert knows.
    test_samples: of each task, in the first two sets; side_samples: in the other sets; None: all
        that are withheld.
    answered_samples: of each task and test set, that are answered; losses are measured on all.
    uncached_samples: of the first test set, for models that cannot use a cache (X-LoRA) and take
        minutes where others take seconds; they answer no other. Their losses are measured on all.
    search_samples: validation samples of every task, for the search of fixed weights.
    search_steps: weights that LoraHub's search tries.
    density: the share of each adapter that TIES and DARE keep.
    xlora_learning_rate: of X-LoRA's classifier, which is trained like the gates otherwise;
        weights_learning_rate: of static weights that are learned.
    replicates: of the bootstrap.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    mixtures: dict[str, dict[str, JsonValue]] = Field(
        default={"CGM LoRA": {}, "reference gate": {"context": "reference"}}, min_length=1
    )
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    test_sets: tuple[TestSet, ...] = Field(
        default=("named", "bare", "paraphrased", "mixed", "unknown"), min_length=1
    )
    test_samples: int | None = Field(default=None, ge=2)
    side_samples: int | None = Field(default=100, ge=2)
    answered_samples: int | None = Field(default=None, ge=1)
    uncached_samples: int | None = Field(default=50, ge=2)
    search_samples: int = Field(default=32, ge=1)
    search_steps: int = Field(default=40, ge=1)
    density: float = Field(default=0.5, gt=0, le=1)
    xlora_learning_rate: float = Field(default=1e-3, gt=0)
    weights_learning_rate: float = Field(default=1e-2, gt=0)
    replicates: int = Field(default=2000, ge=100)


class Recipe(Strict):
    """All settings of a run and of its comparison.

    experts: given adapters by name, beside those that tasks train; see `Task.expert`.
    seed: of the splits and of every training.
    samples: kept of every task; None: as many as the smallest task has.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    seed: Seed = 0
    base: BaseSpec = BaseSpec()
    experts: dict[str, ExpertSpec] = {}
    tasks: tuple[Task, ...] = Field(min_length=1)
    samples: int | None = Field(default=None, ge=1)
    finetune: FinetuneSpec = FinetuneSpec()
    lora: LoraSpec = LoraSpec()
    gate: GateSpec = GateSpec()
    generation: GenerationSpec = GenerationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    comparison: ComparisonSpec = ComparisonSpec()

    @property
    def trained(self) -> tuple[Task, ...]:
        """The tasks that an adapter of their own is trained on."""
        return tuple(task for task in self.tasks if task.expert == OWN)

    @property
    def longest_prompt(self) -> int:
        """The tokens of the longest prompt of any task: what a task's prompt may have in other
        wordings, or about the inputs of others.
        """
        return max(task.max_input_tokens for task in self.tasks)

    @property
    def routed(self) -> tuple[Task, ...]:
        """The tasks that have an expert: gates learn from them, and so does what competes."""
        return tuple(task for task in self.tasks if task.expert != NO_EXPERT)

    @property
    def expert_names(self) -> list[str]:
        """The experts of the mixture in their order: the trained ones, then the given ones."""
        return [*(task.name for task in self.trained), *self.experts]

    @property
    def own_experts(self) -> dict[str, str]:
        """The name of its expert for every task that has one."""
        return {task.name: task.name if task.expert == OWN else task.expert for task in self.routed}

    def mixtures(self) -> dict[str, GateSpec]:
        """Return the gates of every mixture of the comparison, by its name.

        A reference gate takes its training from the recipe's `gate`, and nothing else.
        Raises ValidationError for unknown keys.
        """
        training = self.gate.model_dump(include=set(TrainSpec.model_fields))
        untouched = {"init": "zero", "bare": 0.0, "rates": "equal", "keep_start": False}
        reference = GateSpec.model_validate(
            training | untouched | GateConfig.reference().model_dump()
        )
        return {
            name: (reference if changes.get("context") == "reference" else self.gate).changed(
                changes
            )
            for name, changes in self.comparison.mixtures.items()
        }

    def to_yaml(self) -> str:
        """Return the resolved recipe: every setting spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
