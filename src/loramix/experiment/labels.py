"""Models of a run by key, and the labels under which tables and reports show them.

A key (`base`, `finetune`, `lora-haiku`, `mixture`) is for code; a label is for reading.
"""

from loramix.experiment.recipe import Recipe

BASE, FINETUNE, MIXTURE, ORACLE = "base", "finetune", "mixture", "oracle"
_LABELS = {BASE: "base", FINETUNE: "full finetune", MIXTURE: "CGM LoRA", ORACLE: "oracle"}
_EXPERT = "lora-"  # begins the keys of experts


def expert_key(expert: str) -> str:
    """Return the key of an expert: of a trained one, which has its task's name, or of a given
    one.
    """
    return f"{_EXPERT}{expert}"


def label(key: str) -> str:
    """Return the label of the model with this key."""
    return f"LoRA {key.removeprefix(_EXPERT)}" if key.startswith(_EXPERT) else _LABELS[key]


def model_keys(recipe: Recipe) -> list[str]:
    """Return the keys of the run's models, in the order of its tables."""
    return [BASE, FINETUNE, *map(expert_key, recipe.expert_names), MIXTURE]


def run_labels(recipe: Recipe) -> set[str]:
    """Return the labels of the other models, which no mixture of a comparison may have."""
    return {label(key) for key in (*model_keys(recipe), ORACLE) if key != MIXTURE}
