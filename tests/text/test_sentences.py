import re

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from brd.sections.text import Text
from brd.text.sentences import Span, limit_broken, split
from brd.text.sources import paragraphs

pieces = st.sampled_from(
    [*"abAB .!?\n\r\t\"'()é😀\u2028\u3000\x85\x1c。", "Dr. ", "e.g. ", "\n\n", "He said: ", "3.5 ", "\ud800"]
)
texts = st.one_of(st.text(), st.lists(pieces, max_size=60).map("".join))


prose = [p.text[s.start : s.end] for p in paragraphs(Text()) for s in split(p.text, "en")]
realistic = st.lists(
    st.tuples(st.sampled_from(prose), st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\xa0", ""])), max_size=12
).map(lambda pairs: "".join(sentence + space for sentence, space in pairs))
languages = st.sampled_from(["en", "de", "fr", "zh", "hy", "my", "en-GB", "nonsense", ""])


@given(text=st.one_of(texts, realistic), language=languages)
def test_spans_and_what_lies_between_them_give_the_text_back(text: str, language: str) -> None:
    tiles(text, language)


def by_boundaries(text: str, language: str) -> list[Span]:
    """The plain way: what sentencex itself says about places."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", re.sub(r"[^\S \n\t]", " ", text))
    found = [(b["start_index"], b["text"]) for b in sentencex.get_sentence_boundaries(language, text)]
    return [
        Span(start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip()))
        for start, piece in found
        if piece.strip()
    ]


@settings(deadline=None)
@given(text=st.one_of(texts, realistic), long=st.sampled_from([False] * 9 + [True]), language=languages)
def test_the_fast_way_gives_the_sentences_of_the_plain_way(text: str, long: bool, language: str) -> None:
    text *= 12_000 // (len(text) or 1) + 1 if long else 1
    assert split(text, language) == by_boundaries(text, language)


@pytest.mark.parametrize("unit", ["Le café était là. ", "Le café.\n\nIl y a. ", "Été.\n\r\nOui 😀. "])
def test_a_paragraph_beyond_what_sentencex_takes_at_once(unit: str) -> None:
    text = unit * 10_000
    assert tiles(text, "fr") == 10_000 * unit.count(".")


def tiles(text: str, language: str) -> int:
    """Checks that spans and white space give the text back, and counts the spans."""
    rebuilt, position = "", 0
    spans = split(text, language)
    for span in spans:
        assert position <= span.start < span.end
        between = text[position : span.start]
        assert not between.strip()
        sentence = text[span.start : span.end]
        assert sentence == sentence.strip()
        rebuilt += between + sentence
        position = span.end
    assert not text[position:].strip()
    assert rebuilt + text[position:] == text
    return len(spans)


def test_our_passages_split_into_their_sentences() -> None:
    assert len(prose) > 800
    assert all(s[-1] in ".!?\"'" for s in prose)


def test_a_language_borrows_the_rules_of_a_relative_and_an_unknown_code_those_of_english() -> None:
    text = "Er kam am 3. Mai. Gut."
    assert len(split(text, "de")) == len(split(text, "bar")) == 2
    assert split(text, "de-AT") == split(text, "nonsense") == split(text, "en") != split(text, "de")


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
