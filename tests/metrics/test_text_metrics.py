"""ROUGE and BERTScore: values, order, empty texts, and parity with bert-score."""

import sys
from pathlib import Path

import bert_score
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel

from loramix.errors import BaseModelError, DataError, MissingExtraError
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.rouge import rouge

TEXT = (
    "an old silent pond a frog jumps into the splash silence again "
    "deep learning for small models in spring"
)
WORDS = TEXT.split()
POSITIONS = 24
GENERATED = [
    "a frog",
    "an old silent pond / a frog jumps into the pond / splash silence again",
    "deep learning for small models",
    "spring",
    "the pond in spring again",
]
REFERENCES = [
    "an old silent frog jumps into the splash",
    "an old pond",
    "small models for deep learning in spring",
    "a silent pond",
    "deep silence",
]


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """The folder of a random BERT, in a path that bert-score must not take for a T5's."""
    folder = tmp_path / "not-t5" / "tiny-encoder"
    config = BertConfig(
        vocab_size=len(WORDS) + 6,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder)
    return str(folder)


def _save_tokenizer(folder: Path, **limit: int) -> None:
    """Save a WordPiece tokenizer of WORDS, by default without a length limit."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "/", *WORDS]
    BertTokenizer(
        vocab={token: position for position, token in enumerate(tokens)}, **limit
    ).save_pretrained(folder)


def _bert_score(
    encoder: str, generated: list[str], references: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Return what bert-score itself says, from a relative path without "t5", pair by pair."""
    _save_tokenizer(Path(encoder), model_max_length=POSITIONS)  # bert-score fails without
    monkeypatch.chdir(Path(encoder).parent)
    return [
        bert_score.score(
            [text], [reference], model_type=Path(encoder).name, num_layers=2, device="cpu"
        )[2].item()
        for text, reference in zip(generated, references, strict=True)
    ]


def test_rouge_of_hand_computed_examples() -> None:
    scores = rouge(
        ["The cat sat", "old pond / frogs jumping in"],
        ["the cat sat on the mat", "the frog jumped / into an old pond"],
    )
    # 3 of 3 and 3 of 6 words, 2 of 2 and 2 of 5 pairs, a common subsequence of 3;
    # stems: old pond frog jump of 5 and 7 words, two pairs of 4 and 6, a common subsequence of 2
    assert scores["rouge1"] == pytest.approx([2 / 3, 2 / 3])
    assert scores["rouge2"] == pytest.approx([4 / 7, 4 / 10])
    assert scores["rougeL"] == pytest.approx([2 / 3, 4 / 12])


def test_rouge_of_empty_texts_is_zero() -> None:
    scores = rouge(["", "a pond", " \n ", "…", ""], ["a pond", "", "a pond", "a pond", ""])
    assert scores == {kind: [0.0] * 5 for kind in ("rouge1", "rouge2", "rougeL")}
    assert rouge([], []) == {"rouge1": [], "rouge2": [], "rougeL": []}


def test_rouge_refuses_lists_of_different_length() -> None:
    with pytest.raises(DataError, match="1 generated texts, but 2 references"):
        rouge(["a"], ["a", "b"])


@pytest.mark.parametrize("library", ["rouge_score", "bert_score"])
def test_missing_library_is_named(
    library: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    call = (
        (lambda: rouge(["a"], ["a"])) if library == "rouge_score" else (lambda: BertScorer(encoder))
    )
    with pytest.raises(MissingExtraError, match=r"loramix\[metrics\]"):
        call()


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_bertscore_keeps_the_order_and_each_pair_its_score(encoder: str, batch_size: int) -> None:
    scorer = BertScorer(encoder, batch_size=batch_size)
    together = scorer.score(GENERATED, REFERENCES)
    alone = [
        scorer.score([text], [reference])[0]
        for text, reference in zip(GENERATED, REFERENCES, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-5)
    assert scorer.score(GENERATED[::-1], REFERENCES[::-1]) == pytest.approx(
        together[::-1], abs=1e-5
    )
    assert len({round(score, 3) for score in together}) == len(together)


def test_bertscore_equals_bert_score(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = BertScorer(encoder).score(GENERATED, REFERENCES)
    assert scores == pytest.approx(
        _bert_score(encoder, GENERATED, REFERENCES, monkeypatch), abs=1e-5
    )


def test_bertscore_of_a_text_with_itself_is_one(encoder: str) -> None:
    assert BertScorer(encoder).score(GENERATED, GENERATED) == pytest.approx(
        [1.0] * len(GENERATED), abs=1e-5
    )


@pytest.mark.parametrize("empty", ["", " \n\t", "\u200b", "[SEP]"])
def test_bertscore_of_empty_texts_is_zero(encoder: str, empty: str) -> None:
    scorer = BertScorer(encoder)
    expected = scorer.score(["a frog"], ["an old pond"])[0]
    scores = scorer.score(
        [empty, "a frog", "a frog", empty], ["a frog", "an old pond", empty, empty]
    )
    assert scores == [0.0, pytest.approx(expected, abs=1e-5), 0.0, 0.0]
    assert scorer.score([empty], ["a frog"]) == [0.0]
    assert scorer.score([], []) == []


def test_bertscore_reads_as_much_as_the_encoder_can(encoder: str) -> None:
    scorer = BertScorer(encoder)
    fits = " ".join((WORDS * 2)[: POSITIONS - 2])
    assert scorer.score(
        [f"{fits} pond" * 50, "a frog"], ["a frog", fits + " frog splash"]
    ) == pytest.approx(scorer.score([fits, "a frog"], ["a frog", fits]), abs=1e-5)


def test_bertscore_leaves_out_the_positions_that_roberta_reserves(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=len(WORDS) + 6,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        pad_token_id=1,
        type_vocab_size=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    _save_tokenizer(tmp_path)
    assert BertScorer(str(tmp_path)).score(["a frog " * 40], ["a frog " * 40]) == pytest.approx(
        [1.0], abs=1e-5
    )


def test_bertscore_layer_is_the_last_unless_chosen(encoder: str) -> None:
    last, second, first = (
        BertScorer(encoder),
        BertScorer(encoder, layer=2),
        BertScorer(encoder, layer=1),
    )
    assert last.identity == second.identity != first.identity
    assert last.score(GENERATED, REFERENCES) == second.score(GENERATED, REFERENCES)
    assert last.score(GENERATED, REFERENCES) != pytest.approx(
        first.score(GENERATED, REFERENCES), abs=1e-3
    )


def test_bertscore_identity_names_encoder_layer_and_versions(encoder: str) -> None:
    identity = BertScorer(encoder + "/").identity
    assert identity.startswith("tiny-encoder layer 2 (bert-score ")
    assert "transformers" in identity
    assert str(Path(encoder).parent) not in identity


def test_bertscore_refuses_what_it_cannot_do(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="layers 1 to 2, but no layer 3"):
        BertScorer(encoder, layer=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match="no encoder"):
        BertScorer(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="2 generated texts, but 1 references"):
        BertScorer(encoder).score(["a", "b"], ["a"])
