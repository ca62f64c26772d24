"""Scores of single answers: exact match, BLEU, keywords, repetition, and the scores of a task."""

import math
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramix.bases.tiny import save_tiny_encoder
from loramix.data.tasks import Task
from loramix.errors import DataError, MissingExtraError
from loramix.metrics.bertscore import BertScorer
from loramix.metrics.diversity import distinct, repetition, words
from loramix.metrics.matching import exact_match, keyword_use
from loramix.metrics.measures import MEASURES, answer_scores, tokenizer
from loramix.metrics.rouge import rouge
from loramix.metrics.translation import bleu, bleu_signature, chrf, chrf_signature
from loramix.metrics.words import TOKENIZER, split_words

HAIKU = "The kettle mutters. / Someone upstairs drops one shoe; / we wait for the next."
ANYWHERE = ["words", "repetition", "empty", "cut", "malformed"]
PIECES = ["a", "the", "frog", "frogs", "pond's", "(A)", "/", "don't", "5%"]
TEXTS = st.text(max_size=40) | st.lists(st.sampled_from(PIECES)).map(" ".join)
SAMPLES = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


def one(
    score: Callable[[Sequence[str], Sequence[str]], list[float]], left: str, right: str
) -> float:
    """Return the score of a single pair."""
    (value,) = score([left], [right])
    return value


# --- exact match


@pytest.mark.parametrize(
    ("generated", "reference"),
    [
        ("bank", "bank"),
        ("  The Bank. ", "bank"),
        ("“a bank”", "an bank!"),
        ("'the «bank»'", "bank"),
        ("**the bank**", "bank"),
        ("river\n\tbank", "river bank"),
        ("cafe\u0301", "CAFÉ"),
        ("STRASSE", "straße"),
        ("don’t know", "don't know"),
        ("(B) bank", "bank"),
        ("B) the bank", "bank"),
        ('"(B) bank."', "(C) bank"),
        ("(B)", "B"),
        ("the", "The"),
        ("A", "a"),
        ("ends in the U.S.", "ends in the u.s"),
        ("(-5)", "-5."),
        ("?", " ? "),
        ("５％", "5%"),
        ("（Ｂ） 「東京」。", "東京"),
        ("東京　タワー", "東京 ﾀﾜｰ"),
        ("\u200fمرحبا\u200e؟", "ﻣﺮﺣﺒﺎ"),
        ("한국\ufeff", unicodedata.normalize("NFD", "한국")),
        ("¿Río?", "río"),
        ("नमस्ते।", "नमस्ते"),
        ("ΣΟΦΟΣ", "σοφός".replace("ό", "ο")),
        ("❤️", "❤"),
    ],
)
def test_what_is_around_an_answer_does_not_count(generated: str, reference: str) -> None:
    assert one(exact_match, generated, reference) == 1.0
    assert one(exact_match, reference, generated) == 1.0


@pytest.mark.parametrize(
    ("generated", "reference"),
    [
        ("", "bank"),
        ("", ""),
        (" \n", " "),
        ("bank", "banks"),
        ("the river bank", "bank"),
        ("river the bank", "river bank"),  # an article within
        ("theatre", "atre"),
        ("anode", "ode"),
        ("(A)", "(B)"),  # labels alone
        ("B", "B) bank"),
        ("(S)-warfarin", "(R)-warfarin"),
        ("(b) bank", "bank"),
        ("5", "-5"),
        ("5", ".5"),
        ("5", "5%"),
        ("5", "$5"),
        ("+", "-"),
        ("?", "!"),
        ("a.b", "ab"),
        ("naive", "naïve"),
        ("10²", "102"),
        ("5", "５％"),
        ("٥٪", "٥"),
        ("が", "か"),
        ("👍🏽", "👍"),
        ("\u200b", "\u200b"),
        ("می\u200cخوابد", "میخوابد"),
        ("ы", "Ъ"),
    ],
)
def test_another_answer_is_wrong(generated: str, reference: str) -> None:
    assert one(exact_match, generated, reference) == 0.0
    assert one(exact_match, reference, generated) == 0.0


@given(st.text(max_size=20).filter(lambda text: any(map(str.isalnum, text))))
def test_an_answer_matches_itself_in_other_dress(text: str) -> None:
    assert one(exact_match, text, text) == 1.0
    assert one(exact_match, f" “{unicodedata.normalize('NFD', text)}” ", text) == 1.0


# --- BLEU


def test_bleu_of_hand_computed_examples() -> None:
    scores = bleu(
        ["the cat sat on the mat", "the cat", "cat the", "cat", "dog", "the cat sat"],
        ["the cat sat on a mat", "the cat sat on the mat", "the cat", "cat", "cat", "the cat sat"],
    )
    expected = [
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25,  # words, pairs, triples, quadruples
        math.exp(1 - 6 / 2),  # 2 words in place of 6
        math.sqrt(1 * 0.5),  # a missing pair counts half
        1.0,
        0.0,
        1.0,
    ]
    assert scores == pytest.approx(expected)
    assert max(scores) <= 1.0


def test_bleu_of_empty_texts_is_zero() -> None:
    assert (
        bleu(["", " \n", "a pond", "", "\u200b"], ["a pond", "a pond", "", "", "a pond"])
        == [0.0] * 5
    )
    assert bleu([], []) == []


def test_bleu_splits_scripts_without_spaces_into_characters() -> None:
    assert one(bleu, "小さな猫が眠る", "小さな犬が眠る") == pytest.approx(
        one(bleu, "a b c d e f g", "a b c x e f g")
    )
    assert one(bleu, "the cat 眠", "the cat眠") == 1.0
    assert one(bleu, unicodedata.normalize("NFD", "Tiếng Việt đẹp quá"), "Tiếng Việt đẹp quá") == 1


def test_chrf_of_hand_computed_examples() -> None:
    found = chrf(["ab", "ab cd", "猫", "x"], ["abc", "abcd", "犬", ""])
    # beside "abc": precision 1, recall 2/3 of the letters and 1/2 of the pairs, which counts twice;
    # no order above is in both
    recall = (2 / 3 + 1 / 2) / 2
    assert found == [pytest.approx(5 * recall / (4 + recall), abs=1e-4), 1.0, 0.0, 0.0]


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_chrf_of_empty_texts_is_zero(blank: str) -> None:
    assert chrf([blank, "a", blank], ["a", blank, blank]) == [0.0] * 3
    assert chrf([], []) == []


def test_signatures_say_what_measured() -> None:
    assert "tok:13a" in bleu_signature()
    assert TOKENIZER in bleu_signature()
    assert "nc:6|nw:0" in chrf_signature()
    assert tokenizer("rouge2") == tokenizer("words") == TOKENIZER
    assert tokenizer("loss") == tokenizer("bertscore") == ""


def test_bleu_keeps_case() -> None:
    assert one(bleu, "The cat sat", "the cat sat") < 1.0


# --- keywords


@pytest.mark.parametrize(
    ("source", "text", "share"),
    [
        ("frog pond", "An old pond / the FROG jumps", 1.0),
        ("frog pond", "An old silent pool / the frog jumps", 0.5),
        ("frogs jumping", "a frog jumps", 1.0),
        ("frog", "the frogs' pond", 1.0),
        ("mother's", "my mother", 1.0),
        ("mother’s", "mother's", 1.0),
        ("frog, Frogs; FROG pond", "a frog", 0.5),  # distinct words
        ("The frog of the silent pond", "a frog of the woods", 1 / 3),
        ("to be", "to sleep", 0.5),  # function words alone
        ("snow-white", "white as snow", 1.0),
        ("Café", "the cafe\u0301", 1.0),
        ("cat", "concatenate", 0.0),
        ("frog", "", 0.0),
        ("frog", " … ", 0.0),
        ("", "a frog", 0.0),
        ("?!", "?!", 0.0),
        ("2024 снег", "снег in 2024", 1.0),
    ],
)
def test_keywords_are_found_by_their_stems(source: str, text: str, share: float) -> None:
    assert one(keyword_use, source, text) == pytest.approx(share)


def test_long_inputs_are_measured_by_their_distinct_stems() -> None:
    abstract = (
        "We train models. The trained model trains on graphs, and graphs of models train it." * 20
    )
    share = one(keyword_use, abstract, "Training a model")
    assert share == pytest.approx(2 / 3)  # train and model, not graph


@given(TEXTS)
def test_a_text_with_words_uses_all_of_itself(text: str) -> None:
    assert one(keyword_use, text, f"{text} and more") == float(bool(split_words(text)))


# --- words, repetition, distinct


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Don’t stop -- the  well-known 3 cats'!",
            ["don't", "stop", "the", "well", "known", "3", "cats"],
        ),
        ("a / b\nc_d", ["a", "b", "c", "d"]),
        ("cafe\u0301 İstanbul снег", ["café", "i\u0307stanbul", "снег"]),
        ("", []),
        (" / … ", []),
    ],
)
def test_words_are_letters_and_digits(text: str, found: list[str]) -> None:
    assert split_words(text) == found
    assert words([text, ""]) == [float(len(found)), 0.0]


def test_repetition_is_the_share_of_pairs_seen_before() -> None:
    texts = [
        "the sea, the sea / The SEA",
        "a a a a",
        "one two three",
        "alone",
        "",
        "the sea",
        "the sea",
    ]
    # the-sea sea-the the-sea sea-the the-sea: 3 of 5; a-a three times: 2 of 3; and no pair of
    # another text
    assert repetition(texts) == pytest.approx([3 / 5, 2 / 3, 0, 0, 0, 0, 0])


def test_distinct_counts_all_texts_together() -> None:
    texts = ["a b a", "", "A b"]
    assert distinct(texts, 1) == pytest.approx(2 / 5)
    assert distinct(texts, 2) == pytest.approx(2 / 3)  # a-b b-a a-b, and none from text to text
    assert distinct(texts, 3) == 1.0
    assert distinct(texts, 4) == distinct([], 1) == distinct(["", "…"], 1) == 0.0
    with pytest.raises(ValueError, match="not 0"):
        distinct(texts, 0)


@given(TEXTS)
def test_one_texts_repetition_and_distinct_pairs_add_up(text: str) -> None:
    total = repetition([text])[0] + distinct([text], 2)
    assert total == pytest.approx(float(len(split_words(text)) > 1))


# --- all scores


@given(SAMPLES)
def test_every_score_is_a_share_for_each_sample_alone(samples: list[tuple[str, str]]) -> None:
    left, right = [pair[0] for pair in samples], [pair[1] for pair in samples]
    for score in (exact_match, bleu, chrf, keyword_use):
        together = score(left, right)
        assert all(0 <= value <= 1 for value in together)
        assert together == [one(score, *pair) for pair in samples]
    assert all(
        0 <= value <= 1 for value in [*repetition(left), distinct(left, 1), distinct(left, 2)]
    )


@pytest.mark.parametrize("score", [exact_match, bleu, chrf, keyword_use])
def test_lists_of_different_length_are_refused(
    score: Callable[[Sequence[str], Sequence[str]], list[float]],
) -> None:
    with pytest.raises(DataError, match=r"1 .+, but 2 "):
        score(["a"], ["a", "b"])


@pytest.mark.parametrize("library", ["sacrebleu", "nltk"])
def test_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, library, None)
    call = bleu if library == "sacrebleu" else keyword_use
    with pytest.raises(MissingExtraError, match=r"loramix\[metrics\]"):
        call(["unheardofword"], ["a"])


# --- the scores of a task


def task(*metrics: str) -> Task:
    """Return a task that is scored by `metrics`."""
    settings = {
        "name": "t",
        "source": "t.csv",
        "input_column": "in",
        "target_column": "out",
        "prompt": "{input}",
    }
    return Task.model_validate({**settings, "metrics": metrics})


def test_measures_have_the_names_and_directions_of_the_tables() -> None:
    assert " ".join(MEASURES) == (
        "rouge1 rouge2 rougeL bertscore loss perplexity probability combined exact_match bleu chrf "
        "poem_575 three_lines "
        "lines_right keyword_use words repetition empty cut malformed distinct1 distinct2"
    )
    assert all(measure.name == name and measure.label for name, measure in MEASURES.items())
    lower = {name for name, measure in MEASURES.items() if measure.better == "lower"}
    assert lower == {"loss", "perplexity", "repetition", "empty", "cut", "malformed"}
    assert [name for name, measure in MEASURES.items() if measure.better == "neither"] == ["words"]
    needing = [name for name, measure in MEASURES.items() if measure.needs_reference]
    assert needing == list(MEASURES)[:11]


def test_a_haiku_is_measured_by_its_form() -> None:
    generated = [
        HAIKU,
        HAIKU,
        "",
        "The kettle mutters.",
        "cat / cat / we wait for the next",
        "a / b / c / d",
    ]
    scores = answer_scores(
        task("haiku"),
        ["kettle shoe", "kettle moon", "kettle", "a kettle", "dog", "a b"],
        generated,
        None,
        bertscore=None,
        finished=[True, False, True, True, True, False],
    )
    assert list(scores) == ["poem_575", "three_lines", "lines_right", "keyword_use", *ANYWHERE]
    assert scores["poem_575"] == [1, 1, 0, 0, 0, 0]
    assert scores["three_lines"] == [1, 1, 0, 0, 1, 0]
    assert scores["lines_right"] == pytest.approx([1, 1, 0, 1 / 3, 1 / 3, 0])
    assert scores["keyword_use"] == [1, 0.5, 0, 1, 0, 1]
    assert scores["words"] == [13, 13, 0, 3, 7, 4]
    assert scores["empty"] == [0, 0, 1, 0, 0, 0]
    assert scores["cut"] == [0, 1, 0, 0, 0, 1]
    assert scores["malformed"] == [0, 1, 1, 1, 0, 1]


def test_another_answer_is_malformed_if_empty_or_cut() -> None:
    generated = ["bank", "bank bank bank", "", " \n\u200b\u00a0\ufe0f\u3164\u2800", "…"]
    finished = [True, False, False, True, True]
    scores = answer_scores(
        task("bleu"), ["q"] * 5, generated, None, bertscore=None, finished=finished
    )
    assert list(scores) == ANYWHERE
    assert scores["repetition"] == [0, 0.5, 0, 0, 0]
    assert scores["empty"] == [0, 0, 1, 1, 0]
    assert scores["cut"] == [0, 1, 1, 0, 0]
    assert scores["malformed"] == [0, 1, 1, 1, 0]


def test_references_add_what_the_task_asks_for(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path)
    scorer = BertScorer(str(tmp_path))
    generated, references = ["a frog", "the old pond", ""], ["the frog", "old ponds", "spring"]
    scores = answer_scores(
        task("bleu", "chrf", "exact-match", "bertscore", "rouge"),
        ["q", "r", "s"],
        generated,
        references,
        bertscore=scorer,
        finished=[True] * 3,
    )
    assert list(scores) == [
        "rouge1",
        "rouge2",
        "rougeL",
        "bertscore",
        "exact_match",
        "bleu",
        "chrf",
        *ANYWHERE,
    ]
    assert scores["exact_match"] == [1, 0, 0]
    assert scores["bleu"] == bleu(generated, references)
    assert scores["chrf"] == chrf(generated, references)
    assert scores["bertscore"] == pytest.approx(scorer.score(generated, references), abs=1e-6)
    assert {kind: scores[kind] for kind in ("rouge1", "rouge2", "rougeL")} == rouge(
        generated, references
    )


def test_no_answers_have_no_scores() -> None:
    scores = answer_scores(task("haiku", "rouge"), [], [], [], bertscore=None, finished=[])
    assert scores
    assert all(values == [] for values in scores.values())


@pytest.mark.parametrize("short", ["inputs", "references", "finished"])
def test_scores_refuse_what_does_not_fit(short: str) -> None:
    count = {name: 1 if name == short else 2 for name in ("inputs", "references", "finished")}
    inputs, references, finished = (
        ["q"] * count["inputs"],
        ["r"] * count["references"],
        [True] * count["finished"],
    )
    with pytest.raises(DataError, match=f"2 generated texts, but 1 {short}"):
        answer_scores(
            task("haiku"), inputs, ["a", "b"], references, bertscore=None, finished=finished
        )


def test_bertscore_needs_a_scorer_where_there_are_references() -> None:
    with pytest.raises(DataError, match="'t' asks for BERTScore"):
        answer_scores(task("bertscore"), ["q"], ["a"], ["a"], bertscore=None, finished=[True])
    assert (
        list(answer_scores(task("bertscore"), ["q"], ["a"], None, bertscore=None, finished=[True]))
        == ANYWHERE
    )
