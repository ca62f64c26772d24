"""Syllables, the form of a haiku, and the haikus that ship with the package."""

import gzip
import importlib.util
import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramix.data.texts import poem_lines
from loramix.errors import DataError
from loramix.metrics.haiku import haiku_form, syllable_table
from loramix.metrics.syllables import count_syllables, line_syllables

ROOT = Path(__file__).parents[2]
HAIKU_DATA = ROOT.parent / "shared" / "data" / "haiku.parquet"
HAIKU = "The kettle mutters. / Someone upstairs drops one shoe; / we wait for the next."


def script(path: str) -> ModuleType:
    """Import a script of the repository that is not part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- syllables


@pytest.mark.parametrize(
    ("word", "syllables"),
    [
        ("cat", 1),
        ("quiet", 2),
        ("rhythm", 2),
        ("beautiful", 3),
        ("Beautiful,", 3),
        ("antidisestablishmentarianism", 12),
        ("café", 2),
        ("", 0),
        ("…", 0),
        ("—", 0),
        ("&", 1),
        ("50%", 4),
        # apostrophes
        ("it's", 1),
        ("it\u2019s", 1),
        ("'twas", 1),
        ("heartbeat's", 2),
        ("bus's", 2),
        ("that'll", 2),
        ("whisp'ring", 2),
        ("goin'", 2),
        # hyphens and other signs within a word
        ("well-known", 2),
        ("lighthouse-keeper", 4),
        ("sea—wind", 2),
        ("either/or", 3),
        # numbers
        ("0", 2),
        ("7", 2),
        ("77", 5),
        ("100", 3),
        ("1,024", 6),
        ("3.5", 3),
        ("1999", 5),
        ("1905", 4),
        ("2005", 4),
        ("2024", 5),
        ("21st", 3),
        ("22nd", 4),
        ("20th", 3),
        ("80s", 2),
        ("3pm", 3),
        ("007", 6),
        # abbreviations and sounds
        ("BBC", 3),
        ("NASA", 2),
        ("U.S.A.", 3),
        ("WQXZ", 6),
        ("btw", 5),
        ("hmmm", 1),
        ("shh", 1),
        # hashtags and links
        ("#snow", 1),
        ("#BlackLivesMatter", 4),
        ("https://www.example.com", 4),
        # elongated
        ("sooooo", 1),
        ("nooooo!", 1),
        ("loooove", 1),
        ("aaand", 1),
    ],
)
def test_words_count_as_read_aloud(word: str, syllables: int) -> None:
    assert count_syllables(word) == syllables


@pytest.mark.parametrize(
    ("word", "syllables"),
    [
        ("trembles", 2),
        ("cityscapes", 3),
        ("loveliness", 3),
        ("overfilled", 3),
        ("subreddit", 3),
        ("splayed", 1),
        ("crinkled", 2),
        ("wrinkly", 2),
        ("sunshades", 2),
        ("petrichor", 3),
        ("blorf", 1),
        ("glimble", 2),
        ("tanderated", 4),
        ("vorious", 3),
    ],
)
def test_words_that_the_dictionary_lacks_follow_the_rules(word: str, syllables: int) -> None:
    assert count_syllables(word) == syllables


def test_the_first_of_several_pronunciations_counts() -> None:
    assert [count_syllables(word) for word in ("fire", "every", "prayer")] == [2, 3, 1]


def test_a_line_is_the_sum_of_its_words() -> None:
    assert line_syllables("  Someone upstairs -- drops 1 shoe; ") == 7
    assert line_syllables("") == 0


@given(st.text(max_size=30))
def test_any_text_has_a_count_and_adds_it_to_its_line(text: str) -> None:
    assert line_syllables(text) >= 0
    assert line_syllables(f"kettle {text} kettle") == line_syllables(text) + 4


def test_at_least_97_5_percent_of_real_lines_are_counted_as_their_phonemes_say() -> None:
    if not HAIKU_DATA.exists():
        pytest.skip("the haiku data set is not beside the repository")
    counts = script("benchmarks/syllables.py").line_counts(HAIKU_DATA)
    assert len(counts) > 70_000
    assert sum(counted == spoken for counted, spoken in counts) / len(counts) >= 0.975


# --- the table of syllables


def test_the_table_is_rebuilt_from_a_dictionary_of_either_form(tmp_path: Path) -> None:
    build = script("tools/build_syllable_table.py")
    plain = [
        ";;; a comment\n",
        "fire F AY1 ER0\n",
        "fire(2) F AY1 R\n",
        "aalto AA1 L T OW2 # name\n",
        "hmm HH M\n",
    ]
    quoted = [
        "export const dictionary = {\n",
        '  "fire(2)": "F AY1 R",\n',
        '  "fire": "F AY1 ER0",\n',
        "}\n",
    ]
    assert build.read_counts(plain) == {"fire": 2, "aalto": 2}
    assert build.read_counts(quoted) == {"fire": 2}

    source, table = tmp_path / "cmudict.dict", tmp_path / "table.gz"
    source.write_text("".join(plain))
    build.main(source, table)
    assert gzip.decompress(table.read_bytes()).decode() == "2 aalto fire\n"
    again = tmp_path / "again.gz"
    build.main(source, again)
    assert table.read_bytes() == again.read_bytes()


def test_a_file_without_entries_builds_no_table(tmp_path: Path) -> None:
    source = tmp_path / "empty.dict"
    source.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="no dictionary entry"):
        script("tools/build_syllable_table.py").main(source, tmp_path / "table.gz")
    assert not (tmp_path / "table.gz").exists()


def test_the_dictionarys_notice_ships_beside_the_table() -> None:
    folder = files("loramix.metrics") / "data"
    assert (folder / "syllables.txt.gz").is_file()
    assert (
        "Carnegie Mellon University. All rights reserved."
        in (folder / "NOTICE.cmudict.txt").read_text()
    )


# --- the form of a haiku


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a / b / c", ["a", "b", "c"]),
        ("a\nb\r\nc\n", ["a", "b", "c"]),
        ("\n / a /\n b / c / ", ["a", "b", "c"]),
        ("a\n\nb\n\nc", ["a", "b", "c"]),
        ("a / / c", ["a", "", "c"]),
        ("one line", ["one line"]),
        ("", []),
        (" / \n", []),
    ],
)
def test_slashes_and_line_breaks_separate_lines(text: str, lines: list[str]) -> None:
    assert poem_lines(text) == lines


def test_a_haiku_has_its_form() -> None:
    form = haiku_form(HAIKU)
    assert form.syllables == (5, 7, 5)
    assert form.is_575
    assert form.three_lines
    assert form.lines_right == 3


@pytest.mark.parametrize(
    ("text", "syllables", "lines_right"),
    [
        ("", (), 0),
        ("The kettle mutters.", (5,), 1),
        (
            "Someone upstairs drops one shoe / The kettle mutters / we wait for the next",
            (7, 5, 5),
            1,
        ),
        (HAIKU + " / more", (5, 7, 5, 1), 3),
        (HAIKU.replace(" / ", " "), (17,), 0),
    ],
)
def test_other_texts_have_not(text: str, syllables: tuple[int, ...], lines_right: int) -> None:
    form = haiku_form(text)
    assert form.syllables == syllables
    assert form.lines_right == lines_right
    assert not form.is_575
    assert form.three_lines == (len(syllables) == 3)


def test_the_table_counts_empty_and_malformed_texts() -> None:
    table = syllable_table([HAIKU, "", "The kettle mutters.", "cat / cat / we wait for the next"])
    assert table == {
        "n": 4.0,
        "three_lines": 0.5,
        "line1_5": 0.5,
        "line2_7": 0.25,
        "line3_5": 0.5,
        "poem_575": 0.25,
        "mean_syllables": (17 + 0 + 5 + 7) / 4,
        "empty": 0.25,
    }


def test_no_texts_make_no_table() -> None:
    with pytest.raises(DataError, match="no texts"):
        syllable_table([])


# --- the haikus of the demo


@pytest.fixture(scope="module")
def demo() -> list[dict[str, str]]:
    text = (files("loramix.data") / "demo" / "haiku.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_demo_holds_enough_haikus_and_every_one_is_a_575(demo: list[dict[str, str]]) -> None:
    assert len(demo) >= 240
    assert [poem["text"] for poem in demo if not haiku_form(poem["text"]).is_575] == []
    assert [poem["text"] for poem in demo if poem["text"].count(" / ") != 2] == []


def test_the_demo_repeats_neither_poems_nor_lines_nor_keywords(demo: list[dict[str, str]]) -> None:
    texts = Counter(poem["text"].lower() for poem in demo)
    lines = Counter(line.lower() for poem in demo for line in poem_lines(poem["text"]))
    keywords = Counter(" ".join(sorted(poem["keywords"].split())) for poem in demo)
    for counts in (texts, lines, keywords):
        assert [entry for entry, count in counts.items() if count > 1] == []


def test_the_demos_keywords_are_one_to_three_words_of_the_poem(demo: list[dict[str, str]]) -> None:
    for poem in demo:
        assert poem.keys() == {"keywords", "text"}
        keywords = poem["keywords"].split()
        assert 1 <= len(keywords) <= 3
        assert set(keywords) <= set(re.findall("[a-z']+", poem["text"].lower()))
