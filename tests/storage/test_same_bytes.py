"""The same input gives the same bytes, whatever the process: digests can be compared."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig

from loramix.storage.adapter_config import settle

WRITE = """
import sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from loramix import MixtureModel
from loramix.bases.tiny import tiny_model

torch.set_num_threads(1)
out = Path(sys.argv[1])
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
torch.manual_seed(1)
config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
mixture = MixtureModel.from_peft(get_peft_model(tiny_model("tiny-llama"), config))
mixture.save_pretrained(out / "mixture")
mixture.export(out / "adapter", weights={"default": 0.5})
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in started] == [0, 0]
    one, two = (digests(tmp_path / seed) for seed in ("1", "2"))
    assert one == two
    assert "adapter/adapter_config.json" in one


def test_the_order_of_an_adapters_layers_is_that_of_their_names(tmp_path: Path) -> None:
    LoraConfig(target_modules=["v", "a", "q"], exclude_modules=["z", "b"]).save_pretrained(tmp_path)
    settle(tmp_path, revision="main")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["a", "q", "v"]
    assert settings["exclude_modules"] == ["b", "z"]
    assert settings["revision"] == "main"
