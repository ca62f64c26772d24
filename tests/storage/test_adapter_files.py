"""Where adapters lie, and what is wrong with the tensors in their files."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import close, peft_logits, save_expert, target_logits, tiny_model, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramix import MixtureModel
from loramix.errors import ExpertError
from loramix.storage.adapter_files import find_adapter
from loramix.storage.experts import load_expert

State = dict[str, Tensor]
MakeExpert = Callable[..., Path]
IDS, TARGET = tokens(2, 6), tokens(2, 4, seed=1)
WEIGHTS = "adapter_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOWN = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
UP = DOWN.replace("lora_A", "lora_B")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_expert(tmp_path_factory.mktemp("adapter") / "good", "llama", seed=1)


@pytest.fixture
def hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what `me/adapters` holds on a hub in its place."""
    remote, cache = tmp_path / "remote", tmp_path / "cache" / COMMIT
    remote.mkdir()

    def snapshot_download(
        name: str, *, revision: str | None, allow_patterns: list[str], repo_type: str
    ) -> str:
        assert (name, repo_type) == ("me/adapters", "model")
        assert revision in (None, "v1", COMMIT)
        cache.mkdir(parents=True, exist_ok=True)
        for file in remote.rglob("*adapter*.*"):
            inner = file.relative_to(remote)
            if fnmatch(inner.as_posix(), allow_patterns[0]):
                (cache / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, cache / inner)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("me/adapters/deep/haiku", None),
        ("me/adapters/deep/haiku@v1", None),
        ("me/adapters/deep/haiku", "v1"),
        ("me/adapters/deep", None),
        ("me/adapters@v1", None),
        ("me/adapters", None),
    ],
)
def test_an_adapter_in_a_folder_of_a_repository_is_found(
    adapter: Path, hub: Path, source: str, revision: str | None
) -> None:
    shutil.copytree(adapter, hub / "deep" / "haiku")
    found = find_adapter("x", source, revision=revision)
    assert (found.source, found.revision) == ("me/adapters/deep/haiku", COMMIT)
    again = find_adapter("x", found.source, revision=found.revision)
    assert again == found
    assert found.weights.read_bytes() == (adapter / WEIGHTS).read_bytes()


def test_what_a_repository_does_not_hold_is_said(adapter: Path, hub: Path) -> None:
    for name in ("haiku", "title"):
        shutil.copytree(adapter, hub / name)
    with pytest.raises(ExpertError, match="holds 2 adapters in subfolders: haiku, title; name one"):
        find_adapter("x", "me/adapters")
    with pytest.raises(ExpertError, match="'me/adapters' has no folder 'poem' with an adapter"):
        find_adapter("x", "me/adapters/poem")
    with pytest.raises(ExpertError, match="names revision 'v1', and 'v2' is asked"):
        find_adapter("x", "me/adapters/haiku@v1", revision="v2")


def test_the_only_adapter_of_a_training_is_found(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "checkpoint-10")
    mixture = MixtureModel.from_experts(tiny_model("llama"), {"x": tmp_path / "run"})
    assert mixture.experts[0].source == str(tmp_path / "run" / "checkpoint-10")
    shutil.copytree(adapter, tmp_path / "run" / "checkpoint-20")
    with pytest.raises(ExpertError, match="2 adapters in subfolders: checkpoint-10, checkpoint-20"):
        load_expert("x", tmp_path / "run")
    for file in adapter.iterdir():
        shutil.copy(file, tmp_path / "run")
    assert load_expert("x", tmp_path / "run").source == str(tmp_path / "run")


def test_home_links_and_dots_are_followed(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(adapter.parent))
    assert load_expert("x", "~/good").updates
    (tmp_path / "link").symlink_to(adapter)
    assert load_expert("x", tmp_path / "link").updates
    assert load_expert("x", f"{adapter}/../good/").updates


def test_an_older_pickled_adapter_is_read_and_copied_as_safetensors(
    adapter: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(adapter / "adapter_config.json", old)
    torch.save(load_file(adapter / WEIGHTS), old / "adapter_model.bin")
    mixture = MixtureModel.from_experts(tiny_model("llama"), {"old": old})
    with mixture.fixed({"old": 1.0}):
        close(target_logits(mixture, IDS, TARGET), peft_logits("llama", adapter, IDS, TARGET))
    for kind in ("copy", "reference"):
        mixture.save_pretrained(tmp_path / kind, experts=kind)
        again = MixtureModel.from_pretrained(tmp_path / kind, base=tiny_model("llama"))
        assert torch.equal(target_logits(again, IDS, TARGET), target_logits(mixture, IDS, TARGET))
    assert (tmp_path / "copy" / "experts" / "old" / WEIGHTS).is_file()
    assert not list((tmp_path / "copy").rglob("*.bin"))


def test_a_pickle_that_runs_code_is_not_read(adapter: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("code that a file must not run",)

    shutil.copy(adapter / "adapter_config.json", tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ExpertError, match=r"expert 'x': .*adapter_model\.bin cannot be read"):
        load_expert("x", tmp_path)


def test_what_a_folder_holds_is_said(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=r"holds no adapter_config\.json.*holds nothing"):
        load_expert("x", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExpertError, match=r"this one holds notes\.txt"):
        load_expert("x", tmp_path)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(ExpertError, match=rf"holds no {WEIGHTS}.*only adapter_config\.json, notes"):
        load_expert("x", tmp_path)
    with pytest.raises(ExpertError, match="it is a file; give the folder that holds it"):
        load_expert("x", adapter / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "header too small"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_a_damaged_file_is_named(adapter: Path, tmp_path: Path, content: bytes, words: str) -> None:
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ExpertError, match=rf"(?s)expert 'x': .*{WEIGHTS} cannot be read.*{words}"):
        load_expert("x", tmp_path)


def _without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, key: change(state[key])}


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {key: torch.zeros(0) for key in state}, r"of shape \[0\] is empty.*ZeRO-3"),
        (_with(DOWN, lambda tensor: torch.zeros(0)), rf"'{DOWN}' of shape \[0\] is empty"),
        (_with(UP, lambda tensor: torch.zeros(32, 0)), rf"'{UP}' of shape \[32, 0\] is empty"),
        (lambda state: {}, "holds no tensors"),
        (_without(UP), f"holds '{DOWN}' without '{UP}'"),
        (_without(DOWN), f"holds '{UP}' without '{DOWN}'"),
        (_with(DOWN, lambda tensor: tensor[:2]), r"\[2, 32\] and .* \[32, 4\] differ: 2 and 4"),
        (
            lambda state: {**state, DOWN: state[DOWN][:2], UP: state[UP][:, :2]},
            r"of shape \[2, 32\] has rank 2, and its adapter_config\.json says 4",
        ),
        (_with(DOWN, _filled(float("nan"))), rf"'{DOWN}' of shape \[4, 32\] holds NaN"),
        (_with(UP, _filled(float("-inf"))), rf"'{UP}' of shape \[32, 4\] holds inf"),
        (_with(DOWN, lambda tensor: tensor.to(torch.int8)), r"format torch\.int8"),
        (_with(DOWN, lambda tensor: tensor[:, :, None]), r"\[4, 32, 1\] is no matrix"),
        (
            lambda state: {key.removeprefix("base_model.model."): v for key, v in state.items()},
            r"named 'base_model\.model\.LAYER\.lora_A\.weight'",
        ),
    ],
)
def test_damaged_tensors_are_named(
    adapter: Path, tmp_path: Path, change: Callable[[State], State], words: str
) -> None:
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    state = change(load_file(adapter / WEIGHTS))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / WEIGHTS)
    with pytest.raises(ExpertError, match=f"(?s)expert 'bad'.*{words}"):
        MixtureModel.from_experts(tiny_model("llama"), {"good": adapter, "bad": tmp_path})
