"""A recipe: everything that a run depends on, as checked settings; see `reading` for its YAML."""

from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from loramix.config import Context, GateConfig
from loramix.data.tasks import Task
from loramix.mixture.problems import Init

STAGES = ("prepare", "benchmark", "finetune", "lora", "gate", "evaluate", "report")

ModelName = Literal[
    "base",
    "finetune",
    "experts",
    "oracle",
    "joint",
    "uniform",
    "static",
    "ties",
    "dare",
    "lorahub",
    "arrow",
    "xlora",
    "mixtures",
]
TestSet = Literal["named", "bare", "paraphrased", "mixed", "unknown"]


class Strict(BaseModel):
    """Settings that cannot be changed, among which no unknown key hides."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSpec(Strict):
    """Which base model, in which number format, and whether prompts use the tokenizer's chat
    template.

    dtype: `fast` is bfloat16 where the accelerator or processor multiplies in it, else float32.
    """

    name: str = "smollm2-135m"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "fast"] = "float32"
    chat: bool = False


class TrainSpec(Strict):
    """How to train: at most `epochs` passes, stopping after `patience` epochs without a better
    validation loss.

    group_by_length: whether samples of similar length come in one batch, which needs less padding.
    `train_samples` and `validation_samples` bound the samples used of every task; None uses the
    whole split.
    """

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adafactor", "adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
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
    """One LoRA adapter per task. `targets` are names of linear layers; None: q, k, v and o of every
    attention block.
    """

    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = Field(default=1e-3, gt=0)
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class GateSpec(TrainSpec, GateConfig):
    """The gates of the mixture and how to train them.

    init: how they start: at the uniform mixture (`zero`), at the `prototype` of each task's first
        training prompts, or at the directions that each adapter amplifies most (`arrow`); see
        `loramix.mixture.prototypes`.
    entropy, balance, supervised: coefficients of the auxiliary losses, see
        `loramix.experiment.training.gate_losses`.
    bare: the share of the training prompts that are the input alone, without the task's prompt
        around it. Gates that see some cannot win by reading the task's name.
    """

    learning_rate: float = Field(default=3e-3, gt=0)
    patience: int = Field(default=10, ge=1)
    context: Context = "prompt"
    init: Init = "prototype"
    entropy: float = Field(default=0.0, ge=0)
    balance: float = Field(default=0.0, ge=0)
    supervised: float = Field(default=0.0, ge=0)
    bare: float = Field(default=0.5, ge=0, le=1)

    @property
    def config(self) -> GateConfig:
        """The settings of the gates alone."""
        return GateConfig.model_validate(self.model_dump(include=set(GateConfig.model_fields)))


class GenerationSpec(Strict):
    """How answers are generated; how long they may be is the task's `max_new_tokens`."""

    batch_size: int = Field(default=16, ge=1)
    num_beams: int = Field(default=1, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    test_samples: int | None = Field(default=None, ge=1)


class EvaluationSpec(Strict):
    """The encoder of BERTScore: a name or folder; `minilm-l6` is the embedded one."""

    encoder: str = "minilm-l6"


class ComparisonSpec(Strict):
    """Who is compared with whom, on what; see `loramix.comparison`.

    models: `mixtures` stands for those below, `experts` for every expert on its own, also on the
        tasks of others.
    mixtures: gated mixtures by name, each with what it changes in the recipe's `gate`; trained once
        for every seed. One with the context `reference` is the reference gate, of which only the
        training is the recipe's.
    seeds: of the gates' training; everything else is trained once, with the recipe's seed.
    test_sets: `named` is the withheld split; `bare` the same without the prompt around the input;
        `paraphrased` the same with other wordings of the prompt; `mixed` asks for one task about
        the inputs of another; `unknown` asks for a task that no expert knows.
    test_samples: of each task, in the first two sets; side_samples: in the other sets; None: all
        that are withheld.
    uncached_samples: how many samples are answered by models that cannot use a cache (X-LoRA),
        which take minutes for what takes others seconds; their losses are measured on all. They are
        asked the first test set only.
    search_samples: validation samples of every task with which fixed weights are searched;
        search_steps: how many weights LoraHub's search tries.
    density: the share of each adapter that TIES and DARE keep; xlora_learning_rate: of its
        classifier, which is trained like the gates otherwise.
    replicates: of the bootstrap.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    mixtures: dict[str, dict[str, JsonValue]] = Field(
        default={"CGM LoRA": {}, "reference gate": {"context": "reference"}}
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    test_sets: tuple[TestSet, ...] = Field(default=get_args(TestSet), min_length=1)
    test_samples: int | None = Field(default=None, ge=2)
    side_samples: int | None = Field(default=100, ge=2)
    uncached_samples: int | None = Field(default=50, ge=2)
    search_samples: int = Field(default=32, ge=1)
    search_steps: int = Field(default=40, ge=1)
    density: float = Field(default=0.5, gt=0, le=1)
    xlora_learning_rate: float = Field(default=1e-3, gt=0)
    replicates: int = Field(default=2000, ge=100)


class Recipe(Strict):
    """Everything that a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=0, ge=0)
    base: BaseSpec = BaseSpec()
    tasks: tuple[Task, ...] = Field(min_length=1)
    samples: int | None = Field(default=None, ge=1)
    finetune: FinetuneSpec = FinetuneSpec()
    lora: LoraSpec = LoraSpec()
    gate: GateSpec = GateSpec()
    generation: GenerationSpec = GenerationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    comparison: ComparisonSpec = ComparisonSpec()

    def mixtures(self) -> dict[str, GateSpec]:
        """Return the gates of every mixture of the comparison, by its name.

        A reference gate takes from the recipe's `gate` how it is trained, and nothing else.
        Raises ValidationError for unknown keys.
        """
        own = self.gate.model_dump()
        training = self.gate.model_dump(include=set(TrainSpec.model_fields))
        reference = training | {"init": "zero", "bare": 0.0} | GateConfig.reference().model_dump()
        mixtures = {}
        for name, changes in self.comparison.mixtures.items():
            start = reference if changes.get("context") == "reference" else own
            mixtures[name] = GateSpec.model_validate(start | changes)
        return mixtures

    def to_yaml(self) -> str:
        """Return the resolved recipe: every setting spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
