import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.recipe import Text
from brd.text.sentences import Span, limit_broken, split
from brd.text.sources import paragraphs

pieces = st.sampled_from(
    [*"abAB .!?\n\r\t\"'()é😀\u2028\u3000\x85\x1c。", "Dr. ", "e.g. ", "\n\n", "He said: ", "3.5 ", "\ud800"]
)
texts = st.one_of(st.text(), st.lists(pieces, max_size=60).map("".join))


@given(text=texts)
def test_spans_and_what_lies_between_them_give_the_text_back(text: str) -> None:
    rebuilt, position = "", 0
    for span in split(text, "en"):
        assert position <= span.start < span.end
        between = text[position : span.start]
        assert not between.strip()
        sentence = text[span.start : span.end]
        assert sentence == sentence.strip()
        rebuilt += between + sentence
        position = span.end
    assert not text[position:].strip()
    assert rebuilt + text[position:] == text


def test_our_passages_split_into_their_sentences() -> None:
    found = [p.text[s.start : s.end] for p in paragraphs(Text()) for s in split(p.text, "en")]
    assert len(found) > 800
    assert all(s[-1] in ".!?\"'" for s in found)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Sæther came at 4 p.m. on Monday. She left.", ["Dr. Sæther came at 4 p.m. on Monday.", "She left."]),
        ("  It cost 6.4 million.  Why? ", ["It cost 6.4 million.", "Why?"]),
        ("😀 Ja. Über 😀 wissen wir nichts.", ["😀 Ja.", "Über 😀 wissen wir nichts."]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[s.start : s.end] for s in split(text, "en")] == sentences


def test_limits() -> None:
    assert limit_broken(Span(10, 14), 5, 20) == "too short"
    assert limit_broken(Span(10, 31), 5, 20) == "too long"
    assert limit_broken(Span(10, 15), 5, 20) is None
    assert limit_broken(Span(10, 30), 5, 20) is None
