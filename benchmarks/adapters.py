"""Train nine LoRA adapters with plain PEFT, as people bring them: each of its own kind.

    python benchmarks/adapters.py TASKS --out results/adapters

TASKS is a folder with `tasks.yaml` (for every task a file, a prompt and paraphrases) and the files
that it names (columns `input` and `target`). The adapters are for the embedded default model, of
mixed ranks and target modules, one with rsLoRA, all with spaces in their names. The folder gets

    <name>/                    the PEFT adapter
    examples/<name>.jsonl      64 samples for gates (prompt, completion), none of them trained on
    test/<name>.jsonl          32 withheld samples: prompt, input, paraphrases, target
    adapters.csv               rank, modules, seconds, and the losses of base and adapter on test/

Adapters that are there are left as they are, so a stopped run goes on where it was.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from loramix.bases.loading import load_base
from loramix.data.tasks import Task
from loramix.data.tokens.batches import Collator, Encoded
from loramix.data.tokens.encoding import encode

BASE = "smollm2-135m"
TRAIN, EXAMPLES, TEST = 300, 64, 32
EPOCHS, BATCH, RATE = 2, 8, 1e-3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Kind:
    """One adapter: its task, and what a user may have chosen for it."""

    task: str
    rank: int
    modules: tuple[str, ...]
    rslora: bool = False


# The last one is there to be added to a mixture of the others.
KINDS = {
    "shell commands": Kind("english-to-bash", 8, ("q_proj", "v_proj")),
    "table questions": Kind("question-to-sql", 16, ATTENTION),
    "code in words": Kind("python-to-english", 4, LINEAR),
    "robot moves": Kind("scan-actions", 8, ATTENTION),
    "Spanish verbs": Kind("spanish-inflection", 12, ATTENTION, rslora=True),
    "say it aloud": Kind("word-to-pronunciation", 8, LINEAR),
    "into German": Kind("english-to-german", 16, LINEAR),
    "question types": Kind("question-type", 4, ("q_proj", "v_proj")),
    "voice assistant": Kind("utterance-to-frame", 6, LINEAR),
}


@dataclass(frozen=True)
class Sample:
    """One sample: the prompt, the input alone, and the prompt in other words."""

    prompt: str
    input: str
    paraphrases: tuple[str, ...]
    target: str


def read_tasks(folder: Path) -> dict[str, Task]:
    """Return the tasks of `tasks.yaml`, by name."""
    described = yaml.safe_load((folder / "tasks.yaml").read_text(encoding="utf-8"))
    return {
        name: Task(
            name=name,
            source=str(folder / task["file"]),
            input_column="input",
            target_column="target",
            prompt=task["prompt"],
            paraphrases=tuple(task["paraphrases"]),
            max_input_tokens=96,
            max_new_tokens=48,
        )
        for name, task in described.items()
    }


def samples_of(task: Task) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Return samples to train on, to set gates with, and to test on; no input is in two of them."""
    rows = pandas.read_parquet(task.source).drop_duplicates("input")
    rows = rows.sample(TRAIN + EXAMPLES + TEST, random_state=0)
    found = [
        Sample(
            task.render(text),
            text,
            tuple(wording.replace("{input}", text) for wording in task.paraphrases),
            target,
        )
        for text, target in zip(rows["input"], rows["target"], strict=True)
    ]
    return found[:TRAIN], found[TRAIN:-TEST], found[-TEST:]


def write_rows(rows: Iterable[Mapping[str, object]], path: Path) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def encoded(tokenizer: PreTrainedTokenizerBase, task: Task, sample: Sample) -> Encoded:
    """Return a sample as loramix's tasks encode it for a base without a chat template."""
    return encode(tokenizer, task, sample.input, sample.target, causal=True, chat=False)


def batches(samples: Sequence[Encoded], collator: Collator) -> list[dict[str, Tensor]]:
    """Return batches of similar length, so that little is padded, in random order."""
    mixed = [samples[index] for index in torch.randperm(len(samples)).tolist()]
    mixed.sort(key=lambda sample: len(sample.prompt) + len(sample.target))
    starts = torch.randperm((len(mixed) + BATCH - 1) // BATCH) * BATCH
    return [collator(mixed[start : start + BATCH]) for start in starts.tolist()]


def train(
    base: PreTrainedModel, kind: Kind, samples: Sequence[Encoded], collator: Collator, name: str
) -> PeftModel:
    """Return the base with a trained adapter."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=kind.rank,
        lora_alpha=2 * kind.rank if not kind.rslora else 8,
        target_modules=list(kind.modules),
        use_rslora=kind.rslora,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = BASE  # not the folder of the cache
    model.train()
    steps = EPOCHS * ((len(samples) + BATCH - 1) // BATCH)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    started = time.monotonic()
    ordered = [batch for _ in range(EPOCHS) for batch in batches(samples, collator)]
    for step, batch in enumerate(ordered, start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            each = (time.monotonic() - started) / step
            print(f"{name}: step {step}/{steps}, {each:.1f} s each, loss {loss:.3f}", flush=True)
    return model


@torch.no_grad()
def mean_loss(model: torch.nn.Module, samples: Sequence[Encoded], collator: Collator) -> float:
    """Return the mean over samples of the mean loss of their target tokens."""
    model.eval()
    return sum(float(model(**collator([sample])).loss) for sample in samples) / len(samples)


def make(name: str, kind: Kind, task: Task, out: Path) -> dict[str, object]:
    """Train one adapter, write it and its samples, and return its row of the table."""
    started = time.monotonic()
    base = load_base(BASE)
    collator = Collator(base.tokenizer, causal=True)
    parts = samples_of(task)
    trained, _, tested = ([encoded(base.tokenizer, task, s) for s in part] for part in parts)
    before = mean_loss(base.model, tested, collator)
    model = train(base.model, kind, trained, collator, name)
    after = mean_loss(model, tested, collator)
    examples = [{"prompt": each.prompt, "completion": each.target} for each in parts[1]]
    write_rows(examples, out / "examples" / f"{name}.jsonl")
    write_rows(map(vars, parts[2]), out / "test" / f"{name}.jsonl")
    model.save_pretrained(out / name)
    return {
        "expert": name,
        "task": kind.task,
        "rank": kind.rank,
        "modules": " ".join(kind.modules),
        "rslora": kind.rslora,
        "seconds": round(time.monotonic() - started),
        "base loss": round(before, 4),
        "own loss": round(after, 4),
    }


def read_table(path: Path) -> list[dict[str, object]]:
    """Return the rows of adapters.csv, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Write adapters.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with tasks.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    options = parser.parse_args()
    tasks, table = read_tasks(options.data), options.out / "adapters.csv"
    options.out.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        rows = read_table(table)
        if name in [row["expert"] for row in rows]:
            print(f"{name}: done already", flush=True)
            continue
        row = make(name, kind, tasks[kind.task], options.out)
        write_table([*rows, row], table)
        print(row, flush=True)


if __name__ == "__main__":
    main()
