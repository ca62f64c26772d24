"""TRL's SFTTrainer trains gates on prompts with completions and on chats."""

import runpy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from loramix import GateConfig, MixtureModel
from loramix.bases.loading import load_base
from loramix.errors import MixtureError

trl = pytest.importorskip("trl", reason="TRL is not installed; get it with: pip install trl")
pytestmark = [
    pytest.mark.axes(False),  # smaller tests check them
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}\n{% endgeneration %}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTIONS = ["name a river", "name a tree please", "name a bird", "what is a stone?"]
ANSWERS = ["the long Rhine", "an oak", "a wren in the hedge", "hard"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        get_peft_model(load_base("tiny-llama").model, config).save_pretrained(folders[name])
    return folders


def build(adapters: dict[str, Path], **gate: object) -> MixtureModel:
    torch.manual_seed(0)
    return MixtureModel.from_experts("tiny-llama", adapters, gate=GateConfig(hidden=8, **gate))


def trainer(mixture: MixtureModel, folder: Path, data: Dataset, **settings: object):
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if "messages" in data.column_names:
        defaults["assistant_only_loss"] = True
    tokenizer = mixture.tokenizer
    tokenizer.chat_template = TEMPLATE
    arguments = trl.SFTConfig(output_dir=str(folder), **{**defaults, **settings})
    return trl.SFTTrainer(
        model=mixture, args=arguments, train_dataset=data, processing_class=tokenizer
    )


def prompted() -> Dataset:
    return Dataset.from_dict({"prompt": QUESTIONS, "completion": ANSWERS})


def chats() -> Dataset:
    pairs = zip(QUESTIONS, ANSWERS, strict=True)
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in pairs
    ]
    return Dataset.from_list(rows)


def conversations() -> Dataset:
    rows = [{"messages": row["prompt"] + row["completion"]} for row in chats()]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("data", [prompted, chats, conversations])
@pytest.mark.parametrize("context", ["prompt", "running"])
def test_the_loss_of_sft_is_that_of_the_mixture(
    adapters: dict[str, Path], tmp_path: Path, data, context: str
) -> None:
    mixture = build(adapters, context=context)
    training = trainer(mixture, tmp_path, data(), gradient_checkpointing=False)
    batch = next(iter(training.get_train_dataloader()))
    assert (batch["labels"] == -100).any()
    gradients = []
    for loss in (
        lambda: training.compute_loss(mixture, dict(batch)),
        lambda: mixture(**batch).loss,
    ):
        mixture.zero_grad()
        value = loss()
        value.backward()
        gradients.append([value.detach()])
        gradients[-1] += [each.grad for each in mixture.parameters() if each.requires_grad]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert any(each.abs().max() > 0 for each in gradients[0][1:])


@pytest.mark.parametrize(
    "data",
    [prompted, *(pytest.param(data, marks=pytest.mark.slow) for data in (chats, conversations))],
)
def test_sft_saves_mixtures_and_goes_on_bit_by_bit(
    adapters: dict[str, Path], tmp_path: Path, data
) -> None:
    mixture, again = build(adapters), build(adapters)
    untrained = {key: value.clone() for key, value in mixture.gate_state().items()}
    trainer(mixture, tmp_path / "run", data()).train()
    trained = mixture.gate_state()
    assert any(not torch.equal(value, untrained[key]) for key, value in trained.items())
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer(again, tmp_path / "again", data()).train(resume_from_checkpoint=checkpoint)
    last = MixtureModel.from_pretrained(tmp_path / "run" / "checkpoint-4")
    for other in (again, last):
        state = other.gate_state()
        assert all(torch.equal(value, state[key]) for key, value in trained.items())


def test_labels_that_the_trainer_keeps_are_missed(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"label_smoothing_factor": 0.1, "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(MixtureError, match="prompt_mask"):
        trainer(build(adapters), tmp_path, prompted(), **settings).train()
    trainer(build(adapters, context="token"), tmp_path, prompted(), **settings).train()


def test_packed_samples_have_prompts_of_their_own(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    losses = []
    for padding_free in (False, True):
        mixture = build(adapters)
        for gate in mixture.gates.values():
            torch.nn.init.normal_(gate.score.weight, std=3.0)
        torch.manual_seed(1)
        settings = {"padding_free": padding_free, "max_length": None}
        training = trainer(mixture, tmp_path, prompted(), **settings)
        rows = [training.train_dataset[index] for index in range(2)]
        batch = training.data_collator(rows)
        losses.append(training.compute_loss(mixture, batch).detach())
    torch.testing.assert_close(*losses)


def test_texts_without_prompts_are_refused_or_read_as_they_go(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    texts = Dataset.from_dict({"text": QUESTIONS})
    with pytest.raises(MixtureError, match=r"prompt_mask.*context='running'"):
        trainer(build(adapters), tmp_path, texts).train()
    trainer(build(adapters, context="running"), tmp_path, texts, max_steps=1).train()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "train_gates_with_trl.py"), run_name="__main__")
    assert "weights in the last layer: {'haiku': " in capsys.readouterr().out
