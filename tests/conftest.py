"""Tiny real models of the three shapes, and adapters for them, built in code."""

import copy
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1"
)  # read when the libraries are imported

import jaxtyping
import pytest
import torch
from hypothesis import settings
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from loramix import MixtureModel
from loramix.bases import loading
from loramix.bases.tiny import tiny_model as tiny_base
from loramix.cli.main import main
from loramix.experiment.training import mixing_trainer
from loramix.report import plots

VOCABULARY = 97
CHECKED = pytest.StashKey[bool]()
CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
torch.set_num_threads(1)  # models this small are slower on more
# The same examples on every machine and at any speed; more of them where slow tests run.
settings.register_profile("quick", deadline=None, derandomize=True, database=None, max_examples=30)
settings.register_profile("slow", settings.get_profile("quick"), max_examples=80)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples by whether slow tests are asked for."""
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "slow")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Choose the tests that check every array's axes, which takes as long as what they check: the
    first case of each test and those marked so, but no comparison of everything with everything;
    all if slow tests are asked for.

    Imported libraries are left out of garbage collection, of which every training does a whole one.
    """
    every, seen = session.config.option.markexpr != "not slow", set[str]()
    for item in session.items:
        test = item.nodeid.partition("[")[0]
        marked = item.get_closest_marker("axes")
        checked = every or (marked.args[0] if marked else test not in seen)
        item.stash[CHECKED] = checked
        seen.add(test)
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Check the axes of arrays in the chosen tests only."""
    jaxtyping.config.update("jaxtyping_disable", not item.stash[CHECKED])
    return (yield)


def tiny_model(shape: str) -> PreTrainedModel:
    """Return a random model of shape `t5`, `llama` or `gpt2`; a copy of the same one every time."""
    return copy.deepcopy(_tiny_model(shape))


@cache
def _tiny_model(shape: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if shape == "t5":
            config = T5Config(
                vocab_size=VOCABULARY,
                d_model=32,
                d_kv=12,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=0,
            )
            return T5ForConditionalGeneration(config).eval()
        if shape == "llama":
            llama = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            return LlamaForCausalLM(llama).eval()
        gpt2 = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return GPT2LMHeadModel(gpt2).eval()


TARGETS = {
    "t5": ["q", "k", "v", "o"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def save_expert(folder: Path, shape: str, *, seed: int, **settings: object) -> Path:
    """Save a strong random adapter with PEFT in `folder`, and return it."""
    defaults = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS[shape],
        "fan_in_fan_out": shape == "gpt2",
    }
    config = LoraConfig(**{**defaults, **settings})
    model = get_peft_model(tiny_model(shape), config)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (
                0.1 if shape == "t5" else 0.3
            )
    model.save_pretrained(folder)
    return folder


def save_given(
    folder: Path, *, seed: int = 1, base: str = "tiny-llama", **settings: object
) -> Path:
    """Save a random adapter of one of the tiny bases that recipes name, and return its folder."""
    defaults = {"r": 6, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    model = get_peft_model(tiny_base(base), LoraConfig(**{**defaults, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function that runs the command line as a process would, but in this one, which has
    the libraries loaded.
    """
    logger = logging.getLogger("loramix")
    before = logger.handlers[:], logger.level, logger.propagate

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["loramix", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    yield run
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def without_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recipe's base that would have to be fetched pass for a tiny one."""
    load_config = loading.load_config
    monkeypatch.setattr(loading, "resolve_revision", lambda name, revision: revision)
    monkeypatch.setattr(
        loading,
        "load_config",
        lambda name, revision=None: load_config(
            name if name.startswith("tiny-") else "tiny-llama", revision=revision
        ),
    )


@pytest.fixture(scope="module")
def without_plots() -> Iterator[None]:
    """Let no plot be drawn: each takes longer than the training of a tiny model that it shows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mixing_trainer, "plot_losses", lambda title, rows, path: path.touch())
        patched.setattr(plots, "_svg", lambda figure: "<svg></svg>")
        yield


@pytest.fixture
def make_expert(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a strong random adapter with PEFT and returns its folder."""
    return lambda shape, name, *, seed, **settings: save_expert(
        tmp_path / name, shape, seed=seed, **settings
    )


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random adapter for the base tiny-llama, once for each name
    and seed, and returns its folder.
    """
    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, *, seed: int, **settings: object) -> Path:
        folder = root / str(seed) / name
        if not folder.exists():
            config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
            base = loading.load_base("tiny-llama").model
            base.name_or_path = "tiny-llama"  # as PEFT writes it down
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = get_peft_model(base, LoraConfig(**{**config, **settings}))
            model.save_pretrained(folder, save_embedding_layers=False)  # or it looks them up
        return folder

    return make


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Return a function that gives adapters of rank 4 for a shape, by name: saved once, and not to
    be changed.
    """
    root = tmp_path_factory.mktemp("experts")

    def of_shape(shape: str, names: Sequence[str] = ("a", "b", "c")) -> dict[str, Path]:
        for name in names:
            if not (root / shape / name).exists():
                save_expert(root / shape / name, shape, seed=ord(name))
        return {name: root / shape / name for name in names}

    return of_shape


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Return a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@torch.no_grad()
def strengthen(mixture: MixtureModel) -> MixtureModel:
    """Give the gates random parameters, so large that they tell inputs apart, and return the
    mixture.
    """
    generator = torch.Generator().manual_seed(3)
    wide = 4.0 if mixture.gate_config.context == "reference" else 1.0  # it reads its input unscaled
    for gate in mixture.gates.values():
        for linear, scale in ((gate.lift, 2.0 * wide), (gate.score, 4.0)):
            linear.weight.copy_(
                torch.randn(linear.weight.shape, generator=generator)
                * scale
                / linear.in_features**0.5
            )
            if linear.bias is not None:
                linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator) / 2)
    return mixture.eval()


def peft_logits(shape: str, folder: Path, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the logits at the target's places of the tiny base with one adapter, served by
    PEFT.
    """
    return target_logits(PeftModel.from_pretrained(tiny_model(shape), folder).eval(), ids, target)


@torch.no_grad()
def target_logits(model: torch.nn.Module, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return what a model computes at the places of `target` after the prompt `ids`, in one
    pass.
    """
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, decoder_input_ids=target).logits
    given = {"input_ids": torch.cat([ids, target], 1)}
    if isinstance(model, MixtureModel):
        given["prompt_mask"] = torch.cat([torch.ones_like(ids), torch.zeros_like(target)], 1).bool()
    return model(**given).logits[:, ids.shape[1] :]


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random ordinary tokens (rows, length)."""
    return torch.randint(
        3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def close(left: torch.Tensor, right: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> None:
    """Assert that two tensors are the same up to the rounding of `dtype`.

    Gates that tell random tokens apart (`strengthen`) enlarge float32's rounding to a few 1e-5, by
    how much the processor decides; what a wrong mask or context changes is above 1e-2.
    """
    exact = dtype == torch.float32
    torch.testing.assert_close(
        left, right, atol=1e-4 if exact else 2e-1, rtol=1e-3 if exact else 1e-1
    )
