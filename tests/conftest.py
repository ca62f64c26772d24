"""Fixtures for all tests, and how they are run; the models that they use are in `tiny_models`.

A process of pytest that hands tests to others loads this file too, and needs no library that takes
seconds to import: fixtures import theirs, and what tests take from `tiny_models` is got when asked.
"""

import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

# Read when the libraries are imported; models this small are slower on several threads.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1")

OF_TINY_MODELS = {
    *("VOCABULARY", "TARGETS", "tiny_model", "save_expert", "save_given", "strengthen", "tokens"),
    *("peft_logits", "target_logits", "close"),
}
CHECKED = pytest.StashKey[bool]()
CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# The same examples on every machine and at any speed; more of them where slow tests run.
settings.register_profile("quick", deadline=None, derandomize=True, database=None, max_examples=30)
settings.register_profile("slow", settings.get_profile("quick"), max_examples=80)


def __getattr__(name: str) -> object:
    """Return what `from conftest import …` asks of `tiny_models`."""
    if name not in OF_TINY_MODELS:
        raise AttributeError(name)
    import tiny_models

    return getattr(tiny_models, name)


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


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function that runs the command line as a process would, but in this one, which has
    the libraries loaded.
    """
    from loramix.cli.main import main

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
    from loramix.bases import loading

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
    from loramix.experiment.training import mixing_trainer
    from loramix.report import plots

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mixing_trainer, "plot_losses", lambda title, rows, path: path.touch())
        patched.setattr(plots, "_svg", lambda figure: "<svg></svg>")
        yield


@pytest.fixture
def few_neutral_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gates that are made from adapters alone be made on a few texts; hundreds take seconds."""
    from loramix.mixture import consensus

    monkeypatch.setattr(consensus, "WRITTEN", 32)
    monkeypatch.setattr(consensus, "RANDOM", 16)


@pytest.fixture
def make_expert(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a strong random adapter with PEFT and returns its folder."""
    from tiny_models import save_expert

    return lambda shape, name, *, seed, **settings: save_expert(
        tmp_path / name, shape, seed=seed, **settings
    )


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random adapter for the base tiny-llama, once for each name
    and seed, and returns its folder.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from loramix.bases.loading import load_base

    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, *, seed: int, **settings: object) -> Path:
        folder = root / str(seed) / name
        if not folder.exists():
            config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
            base = load_base("tiny-llama").model
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
    from tiny_models import save_expert

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
