"""transformers' own tools take a mixture as one of their models: Trainer trains, saves and resumes
its gates, and a pipeline generates with it."""

import logging
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import strengthen, tiny_model, tokens
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from loramix import GateConfig, MixtureModel
from loramix.errors import MixtureError

EXAMPLES = Path(__file__).parents[2] / "examples"
Experts = Callable[..., dict[str, Path]]
SHAPES = ["t5", "llama", "gpt2"]
pytestmark = pytest.mark.axes(False)  # smaller tests check them


def samples(shape: str, *, columns: tuple[str, ...] = ()) -> Dataset:
    """Return eight samples of nine tokens, with answers of one to six tokens."""
    rows = []
    for index in range(8):
        ids = tokens(1, 9, seed=index)[0]
        labels, answer = ids.clone(), 1 + index % 6
        labels[:-answer] = -100
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        row["prompt_mask"] = labels == -100
        kept = ("input_ids", "attention_mask", "labels", *columns)
        rows.append({name: row[name].tolist() for name in kept})
    return Dataset.from_list(rows)


def build(experts: Experts, shape: str, **gate: object) -> MixtureModel:
    base = tiny_model(shape)
    return strengthen(
        MixtureModel.from_experts(base, experts(shape, ("a", "b")), gate=GateConfig(**gate))
    )


def trainer(mixture: MixtureModel, folder: Path, **settings: object) -> Trainer:
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    data = samples("t5" if mixture.config.is_encoder_decoder else "llama")
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    return Trainer(model=mixture, args=arguments, train_dataset=data, eval_dataset=data)


def same(left: MixtureModel, right: MixtureModel) -> bool:
    """Return whether two mixtures have the same gates, bit by bit."""
    state, other = left.gate_state(), right.gate_state()
    return all(torch.equal(value, other[key]) for key, value in state.items())


@pytest.mark.parametrize("shape", SHAPES)
def test_accumulated_batches_make_the_step_of_one_large_batch(
    experts: Experts, tmp_path: Path, shape: str
) -> None:
    steps, losses = [], []
    for size, accumulated in ((8, 1), (2, 4)):
        mixture = build(experts, shape)
        for module in mixture.modules():
            for name in ("p", "dropout"):  # torch's modules of dropout, and T5's attention
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        before = {key: value.clone() for key, value in mixture.gate_state().items()}
        training = trainer(
            mixture,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            learning_rate=1.0,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
        )
        training.train()
        steps.append({key: value - before[key] for key, value in mixture.gate_state().items()})
        losses.append(training.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    whole, parts = steps
    assert any(step.abs().max() > 1e-4 for step in whole.values())
    for key, step in whole.items():
        torch.testing.assert_close(parts[key], step, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", ["t5", "llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_checkpoint_is_a_mixture_and_training_goes_on_from_it_bit_by_bit(
    experts: Experts, tmp_path: Path, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = build(experts, shape)
    trainer(mixture, tmp_path / "run").train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    assert load_file(checkpoint / "gate.safetensors").keys() == mixture.gate_state().keys()
    last = MixtureModel.from_pretrained(tmp_path / "run" / "checkpoint-4", tiny_model(shape))
    assert same(last, mixture)
    assert last.expert_names == ["a", "b"]

    again = build(experts, shape)
    with caplog.at_level(logging.WARNING):
        trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))
    assert same(again, mixture)
    assert "missing keys" not in caplog.text
    assert again.base.lm_head.weight.shape[0] == again.config.vocab_size

    other = build(experts, shape, scope="model")
    with pytest.raises(MixtureError, match="gates do not fit"):
        trainer(other, tmp_path / "other").train(resume_from_checkpoint=str(checkpoint))


def test_priors_of_an_added_expert_come_back(experts: Experts, tmp_path: Path) -> None:
    def extended() -> MixtureModel:
        mixture = build(experts, "llama")
        mixture.add_expert("c", experts("llama")["c"])
        return mixture

    mixture, again = extended(), extended()
    trainer(mixture, tmp_path / "run").train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=checkpoint)
    assert same(again, mixture)
    assert not same(again, extended())


def test_the_best_gates_are_loaded_at_the_end(experts: Experts, tmp_path: Path) -> None:
    mixture = build(experts, "llama")
    training = trainer(
        mixture,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the loss falls, so that an earlier checkpoint is the best
    )
    training.train()
    best = Path(training.state.best_model_checkpoint)
    last = MixtureModel.from_pretrained(tmp_path / "checkpoint-4", tiny_model("llama"))
    assert best.name != "checkpoint-4"
    assert not same(mixture, last)
    assert same(mixture, MixtureModel.from_pretrained(best, tiny_model("llama")))


def test_saving_beside_other_files_leaves_them(experts: Experts, tmp_path: Path) -> None:
    mixture = build(experts, "llama")
    training = trainer(mixture, tmp_path)
    training.train()
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    for _ in range(2):  # the second replaces the first
        training.save_model()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").is_file()
    assert not list(tmp_path.glob(".mixture*"))
    assert same(mixture, MixtureModel.from_pretrained(tmp_path, tiny_model("llama")))


def test_gathered_parameters_are_saved_by_one_process_alone(
    experts: Experts, tmp_path: Path
) -> None:
    mixture = build(experts, "llama")
    gathered = {name: value + 1 for name, value in mixture.state_dict().items()}
    mixture.save_pretrained(tmp_path / "other", state_dict=gathered, is_main_process=False)
    assert not (tmp_path / "other").exists()
    mixture.save_pretrained(tmp_path / "main", state_dict=gathered, is_main_process=True)
    saved = load_file(tmp_path / "main" / "gate.safetensors")
    assert all(torch.equal(saved[key], value + 1) for key, value in mixture.gate_state().items())


def test_activation_checkpointing_changes_no_step(experts: Experts, tmp_path: Path) -> None:
    mixtures = []
    for recompute in (False, True):
        mixture = build(experts, "llama")
        arguments = {"activation_checkpointing": recompute, "save_strategy": "no"}
        trainer(mixture, tmp_path, **arguments).train()
        mixtures.append(mixture)
    assert same(*mixtures)
    assert mixtures[1].is_activation_checkpointing
    mixtures[1].activation_checkpointing_disable()
    assert not mixtures[1].is_activation_checkpointing


def test_smoothed_labels_need_a_prompt_mask_and_are_shifted(
    experts: Experts, tmp_path: Path
) -> None:
    mixture = build(experts, "llama")
    settings = {"label_smoothing_factor": 0.1, "save_strategy": "no", "max_steps": 1}
    with pytest.raises(MixtureError, match=r"label_smoothing_factor.*prompt_mask"):
        trainer(mixture, tmp_path, **settings).train()

    told, losses = samples("llama", columns=("prompt_mask",)), []
    base = tiny_model("llama")
    for model in (mixture, base):
        smoothing = trainer(mixture, tmp_path, **settings)
        smoothing = Trainer(model=model, args=smoothing.args, eval_dataset=told)
        with mixture.fixed({}):  # the base alone
            losses.append(smoothing.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_trainer_keeps_the_columns_that_a_base_reads(experts: Experts, tmp_path: Path) -> None:
    training = trainer(build(experts, "t5"), tmp_path)
    training._set_signature_columns_if_needed()
    names = {"position_ids", "decoder_input_ids", "decoder_attention_mask", "prompt_mask"}
    assert names <= set(training._signature_columns)


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer that has a word for every token of the tiny models."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, 97)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def test_a_pipeline_generates_what_the_mixture_generates(
    experts: Experts, caplog: pytest.LogCaptureFixture
) -> None:
    mixture, tokenizer = build(experts, "llama"), words()
    with caplog.at_level(logging.ERROR):
        generator = pipeline("text-generation", model=mixture, tokenizer=tokenizer)
    assert "not supported" not in caplog.text
    prompt = "w10 w20 w30 w40"
    (found,) = generator(prompt, max_new_tokens=5, do_sample=False, return_full_text=False)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = mixture.generate(input_ids=ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert found["generated_text"].split() == tokenizer.decode(expected).split()


def test_adapters_of_peft_are_not_added_beside_the_experts(experts: Experts) -> None:
    with pytest.raises(MixtureError, match="add_expert"):
        build(experts, "llama").load_adapter("somewhere")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "train_gates_with_trainer.py"), run_name="__main__")
    assert "weights in the last layer: {'haiku': " in capsys.readouterr().out
