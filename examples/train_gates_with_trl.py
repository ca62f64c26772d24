"""Train the gates of a mixture with TRL's SFTTrainer, on chats.

    pip install trl
    python examples/train_gates_with_trl.py

Two adapters of a tiny random model, which needs no download, stand for yours. It takes seconds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from loramix import MixtureModel
from loramix.bases.loading import load_base

BASE = "tiny-llama"  # or a folder, or a Hub id
SAMPLES = {
    "write a haiku about rain": "drops on the window",
    "write a haiku about snow": "the garden is white",
    "write a title about rain": "On the Statistics of Drops",
    "write a title about snow": "White Noise in Winter",
}
# That of the tiny model, which has none of its own.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def main(folder: Path) -> None:
    """Train and load a mixture; all files go to `folder`."""
    adapters = {name: save_adapter(folder / name) for name in ("haiku", "title")}
    mixture = MixtureModel.from_experts(BASE, adapters)
    tokenizer = mixture.tokenizer
    tokenizer.chat_template = TEMPLATE

    # Prompts apart from completions tell the gates what to read. For whole conversations
    # ("messages"), set assistant_only_loss=True, so that what the user says has no labels.
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for asked, answer in SAMPLES.items()
    ]
    arguments = SFTConfig(
        output_dir=str(folder / "run"),
        max_steps=10,
        per_device_train_batch_size=2,
        learning_rate=1e-2,  # ten times that of adapters: a gate has few parameters
        save_steps=5,
        logging_steps=5,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=False,
        report_to=[],
    )
    trainer = SFTTrainer(
        model=mixture,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()

    mixture = MixtureModel.from_pretrained(folder / "run" / "checkpoint-10")
    chat = tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=False)
    weights = mixture.weights(**tokenizer(chat, return_tensors="pt"))
    (last,) = next(reversed(weights.values())).tolist()
    print("weights in the last layer:", dict(zip(adapters, last, strict=True)))


def save_adapter(folder: Path) -> Path:
    """Save an adapter with random weights."""
    model = load_base(BASE).model
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
