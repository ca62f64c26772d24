"""Text from tokens as they come: the whole text, whole characters, and nothing from a stop on."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramix.bases.tiny import tiny_tokenizer
from loramix.serving.texts import TextStream

TOKENIZER = tiny_tokenizer("tiny-llama")  # a token is a byte: every character is split


def streamed(ids: Sequence[int], **settings: object) -> list[str]:
    """Return the parts of a text, the last one held back to the end."""
    stream = TextStream(TOKENIZER, **settings)
    parts: list[str] = []
    for token in ids:
        parts.append(stream.add(token))
        if stream.stopped:
            return parts
    return [*parts, stream.finish()]


@given(st.lists(st.integers(0, 257), max_size=40))
def test_any_tokens_give_the_text_of_all(ids: list[int]) -> None:
    assert "".join(streamed(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(alphabet="aé漢😀 \n", max_size=12))
def test_characters_come_whole(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    parts = streamed(ids)
    assert "".join(parts) == text
    assert "�" not in "".join(parts)
    assert all(len(part) <= 1 for part in parts[:-1])
    assert not parts[-1]


@given(
    st.text(alphabet="ab", max_size=16), st.lists(st.text(alphabet="ab", min_size=1, max_size=4))
)
def test_a_text_ends_before_its_first_stop(text: str, stops: list[str]) -> None:
    shown = "".join(streamed(TOKENIZER(text).input_ids, stops=stops))
    # a stop counts once its last character is there; of those, the one that begins first
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    seen = text[: min(ends, default=len(text))]
    assert shown == seen[: min((seen.index(stop) for stop in stops if stop in seen), default=None)]


@pytest.mark.parametrize(("written", "shown"), [("<t></t>yes", "yes"), ("<t>no", "<t>no")])
def test_what_a_template_puts_before_answers_is_left_out(written: str, shown: str) -> None:
    before = TOKENIZER("<t></t>").input_ids
    assert "".join(streamed(TOKENIZER(written).input_ids, before=before)) == shown
