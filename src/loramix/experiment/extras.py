"""The extras that a run or a comparison needs, asked for before it works for hours."""

from importlib.util import find_spec

from loramix.errors import MissingExtraError

# The modules of each extra, and the packages that bring them.
EXTRAS = {
    "metrics": {
        "bert_score": "bert-score",
        "nltk": "nltk",
        "rouge_score": "rouge-score",
        "sacrebleu": "sacrebleu",
    },
    "report": {"jinja2": "jinja2", "matplotlib": "matplotlib"},
    "cluster": {"ray": "ray"},
    "comparison": {"cma": "cma"},
}
_TRAINED = ("finetune", "lora", "gate")  # stages that draw their losses and score nothing


def needed(stage: str | None) -> tuple[str, ...]:
    """Return the extras that a stage needs with those before it; None stands for all stages."""
    if stage == "prepare":
        return ()
    return ("report",) if stage in _TRAINED else ("metrics", "report")


def require(*extras: str) -> None:
    """Raise MissingExtraError for the first package of these extras that is not installed."""
    for extra in extras:
        for module, package in EXTRAS[extra].items():
            if find_spec(module) is None:
                raise MissingExtraError(package, extra)
