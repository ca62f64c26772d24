"""Train the gates of a mixture with transformers' Trainer, and go on from a checkpoint.

    python examples/train_gates_with_trainer.py

Two adapters of a tiny random model, which needs no download, stand for yours. It takes seconds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, pipeline

from loramix import MixtureModel
from loramix.bases.loading import load_base

BASE = "tiny-llama"  # or a folder, or a Hub id
SAMPLES = [
    ("write a haiku about rain:", " drops on the window"),
    ("write a haiku about snow:", " the garden is white"),
    ("write a title about rain:", " On the Statistics of Drops"),
    ("write a title about snow:", " White Noise in Winter"),
]


def main(folder: Path) -> None:
    """Train, resume, load and ask a mixture; all files go to `folder`."""
    adapters = {name: save_adapter(folder / name) for name in ("haiku", "title")}

    mixture = MixtureModel.from_experts(BASE, adapters)
    train(mixture, folder / "run", steps=10)

    # Every checkpoint is a mixture: gates and experts, not the base.
    mixture = MixtureModel.from_pretrained(folder / "run" / "checkpoint-10")
    train(mixture, folder / "run", steps=20, resume=True)

    tokenizer = mixture.tokenizer
    generator = pipeline("text-generation", model=mixture.eval(), tokenizer=tokenizer)
    prompt = SAMPLES[0][0]
    print(generator(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"])
    weights = mixture.weights(**mixture.text_inputs(prompt))
    (last,) = next(reversed(weights.values())).tolist()
    print("weights in the last layer:", dict(zip(adapters, last, strict=True)))


def save_adapter(folder: Path) -> Path:
    """Save an adapter with random weights."""
    model = load_base(BASE).model
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


def train(mixture: MixtureModel, folder: Path, *, steps: int, resume: bool = False) -> None:
    """Train the gates, which are all that requires gradients."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,  # ten times that of adapters: a gate has few parameters
        save_steps=5,
        logging_steps=5,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
    rows = [encode(mixture, prompt, answer) for prompt, answer in SAMPLES]
    trainer = Trainer(
        model=mixture,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(mixture.tokenizer),  # it pads labels as well
    )
    trainer.train(resume_from_checkpoint=resume)


def encode(mixture: MixtureModel, prompt: str, answer: str) -> dict[str, list[int]]:
    """Return a sample whose prompt has no labels: by that the gates know what to read."""
    asked = mixture.tokenizer(prompt).input_ids
    learned = [*mixture.tokenizer(answer).input_ids, mixture.tokenizer.eos_token_id]
    return {
        "input_ids": asked + learned,
        "attention_mask": [1] * (len(asked) + len(learned)),
        "labels": [-100] * len(asked) + learned,
    }


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
