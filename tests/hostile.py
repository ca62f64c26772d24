"""Damage: what happens to files on disks and in mail, and what an enemy would write."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

ODD = (
    *(None, True, False, 0, -1, 1, 2**70, 1.5, float("nan"), float("inf"), "", "x", "x" * 5000),
    *([], [None], ["x"], [[]], {}, {"x": 1}, {"x": None}, {"(a+)+$": 8}, {"[": 8}, "\ud800", "\0"),
    *("../..", "/etc/passwd", "nan", "1e999", ["q_proj"] * 1000, {"q_proj": float("nan")}),
    *({"q_proj": 0}, {"q_proj": "x"}, "~", "~nobody", "a/b/c/d", -0.0, 1e308, "experts/../.."),
)


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file of a folder in one way; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = draw.choice(files)
    ways: list[Callable[[Path, random.Random], str]] = [_cut, _flip, _empty, _rubbish, _other_kind]
    if file.suffix == ".json":
        ways = [_setting, _setting, _setting, _setting, _dropped, _nested, *ways]
    if file.suffix == ".safetensors":
        ways = [_header, _header, _header, _numbers, *ways]
    return f"{file.name}: {draw.choice(ways)(file, draw)}"


def _cut(file: Path, draw: random.Random) -> str:
    content = file.read_bytes()
    kept = draw.randrange(len(content)) if content else 0
    file.write_bytes(content[:kept])
    return f"cut to {kept} bytes"


def _flip(file: Path, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 8, 64])):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(content))
    return "bits flipped"


def _empty(file: Path, draw: random.Random) -> str:
    file.write_bytes(b"")
    return "emptied"


def _rubbish(file: Path, draw: random.Random) -> str:
    starts = [b"", b"PK\3\4", b"\x80\4", b"version https://git-lfs", b"\xff\xfe", b"{", b"<html>"]
    file.write_bytes(draw.choice(starts) + draw.randbytes(draw.choice([0, 1, 100, 5000])))
    return "rubbish"


def _other_kind(file: Path, draw: random.Random) -> str:
    file.unlink()
    kind = draw.choice(["missing", "folder", "circle", "outside", "nowhere", "parent"])
    if kind == "folder":
        file.mkdir()
    elif kind == "circle":
        file.symlink_to(file.name)
    elif kind == "outside":
        file.symlink_to("/etc/hostname")
    elif kind == "nowhere":
        file.symlink_to("nowhere")
    elif kind == "parent":
        file.symlink_to("..")
    return kind


def _setting(file: Path, draw: random.Random) -> str:
    """Put an odd value somewhere into the settings."""
    content = json.loads(file.read_text())
    place, key = content, draw.choice(sorted(content))
    while draw.random() < 0.6 and isinstance(place[key], dict | list) and place[key]:
        place = place[key]
        key = draw.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
    place[key] = draw.choice(ODD)
    file.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    return f"{key} = {str(place[key])[:50]!r}"


def _dropped(file: Path, draw: random.Random) -> str:
    content = json.loads(file.read_text())
    key = draw.choice(sorted(content))
    del content[key]
    file.write_text(json.dumps(content))
    return f"without {key}"


def _nested(file: Path, draw: random.Random) -> str:
    file.write_text(draw.choice(["[" * 200_000, '{"a":' * 100_000, "1" * 10_000, '{"r": 1e999}']))
    return "nested"


def _header(file: Path, draw: random.Random) -> str:
    """Change the header of a file of tensors, of which an enemy writes every byte."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    key = draw.choice(sorted(set(header) - {"__metadata__"}))
    way = draw.choice(["dtype", "shape", "offsets", "name", "drop", "twice", "size", "odd"])
    entry = header[key]
    if way == "dtype":
        entry["dtype"] = draw.choice(["F64", "I8", "BOOL", "F8_E4M3", "BF16", "X", "U64", "C64"])
    elif way == "shape":
        odd = ([], [0], [2**62, 4], [-1], entry["shape"][::-1], [*entry["shape"], 1])
        entry["shape"] = draw.choice(odd)
    elif way == "offsets":
        entry["data_offsets"] = draw.choice([[0, 2**40], [5, 1], [0, 0], [-1, 4], [None, 1]])
    elif way == "name":
        new = draw.choice([key + "x", "", "x" * 10_000, key.replace("lora_A", "lora_B"), "\0"])
        header[new] = header.pop(key)
    elif way == "drop":
        del header[key]
    elif way == "twice":
        header[f"{key}.again"] = entry
    elif way == "size":
        size = draw.choice([0, 2**63, 2**40, size + 1, size - 1])
    else:
        header[key] = draw.choice(ODD)
    if way == "size":
        file.write_bytes(struct.pack("<Q", size) + content[8:])
    else:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        start = struct.unpack("<Q", content[:8])[0] + 8
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[start:])
    return f"header: {way} of {key[-20:]}"


def _numbers(file: Path, draw: random.Random) -> str:
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    key = draw.choice(sorted(state))
    if state[key].is_floating_point() and state[key].numel():
        state[key].view(-1)[0] = draw.choice([float("nan"), float("inf"), 1e38])
    save_file(state, file)
    return f"a number of {key[-20:]}"


def resealed(folder: Path) -> None:
    """Write the digests of a mixture's files anew, as an enemy would who has changed them."""
    import hashlib

    config = folder / "mixture_config.json"
    try:
        content = json.loads(config.read_text())
        for key, name in (("gate_sha256", "gate"), ("prototypes_sha256", "prototypes")):
            file = folder / f"{name}.safetensors"
            if content.get(key) and file.is_file():
                content[key] = hashlib.sha256(file.read_bytes()).hexdigest()
        for expert in content["experts"]:
            for name in list(expert["sha256"]):
                file = folder / expert["folder"] / name
                if file.is_file():
                    expert["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        config.write_text(json.dumps(content))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def copied(folder: Path, to: Path) -> Path:
    """Return a copy of a folder that may be damaged, in the place of an earlier one."""
    if to.is_symlink() or to.is_file():
        to.unlink()
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    assert os.path.realpath(to) == str(to)
    return to
