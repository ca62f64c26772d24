"""A mixture stays inside its folder, and nothing is read before its digest is checked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from conftest import tiny_model
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from loramix import MixtureModel
from loramix.errors import CheckpointError, LoramixError
from loramix.storage import adapter_config
from loramix.storage import experts as reading
from loramix.storage.card import write_card
from loramix.storage.files import path_part, sha256
from loramix.storage.format import load, pull, push
from loramix.storage.manifest import ExpertRecord

Change = Callable[[dict[str, Any]], None]
DIGESTS = {"adapter_config.json": "0" * 64, "adapter_model.safetensors": "0" * 64}


@pytest.fixture
def saved(experts: Callable[..., dict[str, Path]], tmp_path: Path) -> Path:
    folder = tmp_path / "in" / "saved"
    MixtureModel.from_experts(tiny_model("llama"), experts("llama", ("a", "b"))).save_pretrained(
        folder
    )
    return folder


def changed(folder: Path, change: Change) -> Path:
    file = folder / "mixture_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["experts"][0].update(folder="../outside"), "no folder inside"),
        (lambda c: c["experts"][0].update(folder="experts/../../outside"), "no folder inside"),
        (lambda c: c["experts"][0].update(folder="/etc"), "no folder inside"),
        (lambda c: c["experts"][0].update(folder=""), "no folder inside"),
        (lambda c: c["experts"][1].update(name="a"), "two experts have one name"),
        (lambda c: c["experts"][0].update(sha256={}), "sha256"),
        (lambda c: c["experts"][0]["sha256"].popitem(), "sha256"),
        (lambda c: c["experts"][0]["sha256"].update({"../a": "0" * 64}), "no name of a file"),
        (lambda c: c.update(gate_sha256=""), "gate_sha256"),
        (lambda c: c.update(experts=[]), "no experts"),
        (lambda c: c["gate"].update(temperature=float("nan")), "NaN"),
    ],
)
def test_configurations_that_lead_out_or_check_nothing_are_refused(
    saved: Path, change: Change, said: str
) -> None:
    shutil.copytree(saved / "experts" / "a", saved.parent / "outside")
    with pytest.raises(CheckpointError, match=said):
        load(changed(saved, change))


@pytest.mark.parametrize(
    "place", ["gate.safetensors", "experts/a", "experts/a/adapter_config.json", "experts"]
)
def test_links_that_lead_out_are_refused_whatever_they_lead_to(saved: Path, place: str) -> None:
    outside = saved.parent / "outside"
    (saved / place).rename(outside)
    (saved / place).symlink_to(outside)
    for use in (load, lambda folder: pull(str(folder), saved.parent / "copy"), push_nowhere):
        with pytest.raises(CheckpointError, match=r"leads out of the mixture|link to a folder"):
            use(saved)
    assert not (saved.parent / "copy").exists()


def push_nowhere(folder: Path) -> None:
    push(folder, "nobody/nothing")


def test_a_copy_follows_no_link_to_where_it_comes_from(saved: Path) -> None:
    (saved / "again").symlink_to("..")
    with pytest.raises(CheckpointError, match="link to a folder"):
        pull(str(saved), saved.parent / "copy")


def test_the_files_of_the_hubs_cache_are_links_and_are_read(saved: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--me--mine"
    (cache / "blobs").mkdir(parents=True)
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        link = cache / "snapshots" / "0123" / file.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = cache / "blobs" / sha256(file)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert [each.name for each in load(cache / "snapshots" / "0123").experts] == ["a", "b"]
    pull(str(cache / "snapshots" / "0123"), tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    load(tmp_path / "copy")


def test_digests_are_checked_before_anything_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a file was read before its digest was checked")

    monkeypatch.setattr(reading, "read_tensors", read)
    monkeypatch.setattr(adapter_config, "read_json", read)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        file = saved / "experts" / "a" / name
        before = file.read_bytes()
        file.write_bytes(before[:-1])
        with pytest.raises(CheckpointError, match=f"{name} is not the file"):
            load(saved)
        file.write_bytes(before)


def test_gates_that_are_no_numbers_are_refused(saved: Path) -> None:
    file = saved / "gate.safetensors"
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] = torch.inf
    save_file(state, file)
    changed(saved, lambda content: content.update(gate_sha256=sha256(file)))
    with pytest.raises(CheckpointError, match="holds NaN or inf"):
        load(saved)


# --- names and paths

PATHS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(["..", ".", "", "a", "/"])).map("/".join)
)


@given(PATHS)
@example("experts/a/..")
@example("/")
def test_a_folder_is_inside_or_refused(folder: str) -> None:
    try:
        record = ExpertRecord(name="a", source="a", revision=None, folder=folder, sha256=DIGESTS)
    except ValidationError:
        return
    assert record.folder == folder
    inner = os.path.normpath(os.path.join("/mixture", folder))  # noqa: PTH118
    assert PurePosixPath(inner).is_relative_to("/mixture")


@given(st.text(alphabet=st.characters(codec=None), min_size=1, max_size=300))
@example(".")
@example("..")
@example("a/../../b")
@example("\ud800")
@example("ü" * 250)
def test_the_part_of_a_path_for_a_name_is_one_name(name: str) -> None:
    part = path_part(name)
    assert "/" not in part
    assert part not in (".", "..")
    assert 0 < len(part.encode()) <= 240


@given(st.sets(st.text(min_size=1, max_size=300), min_size=2, max_size=2))
def test_names_that_differ_have_parts_that_differ(names: set[str]) -> None:
    assert len({path_part(name) for name in names}) == 2


def test_long_names_that_differ_at_the_end_have_parts_that_differ() -> None:
    assert path_part("x" * 300 + "a") != path_part("x" * 300 + "b")


@pytest.mark.parametrize("content", ["{", "[]", '{"scores": {"x": 1}}', '{"mean_weights": ["x"]}'])
def test_damaged_measurements_are_told(saved: Path, content: str) -> None:
    (saved / "metrics.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.json is damaged"):
        write_card(saved)


@pytest.mark.parametrize("state", [{}, {"prompts": torch.ones(2, 2), "sharpness": torch.ones(1)}])
def test_damaged_prototypes_are_told(saved: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({"mean/x": torch.ones(3, 2), **state}, saved / "prototypes.safetensors")
    digest = sha256(saved / "prototypes.safetensors")
    changed(saved, lambda content: content.update(prototypes_sha256=digest))
    with pytest.raises(LoramixError, match="prototypes of this mixture are damaged"):
        MixtureModel.from_pretrained(saved, tiny_model("llama"))
