"""A paragraph to sentences with exact character spans, by sentencex (about 300 languages)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import sentencex

# sentencex cannot take half a surrogate pair, and releases of it have panicked at separators such as \n\r\n (its pull
# request 65). Each is replaced by one character, so that spans stay what they are.
_ODD_SPACE = re.compile(r"[^\S \n\t]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Span:
    """A sentence of a text: ``text[start:end]``, in Python characters, without white space around it."""

    start: int
    end: int


def split(text: str, language: str) -> list[Span]:
    """The sentences of ``text``, in order; what lies between them is white space only.

    So the spans and what lies between them give the text back, character by character. Never raises for any str:
    half a surrogate pair is a character like any other. ``language`` is a code such as ``en``; sentencex has rules
    for some 30 languages and borrows a relative's for others. A code that it does not know (``en-GB`` is one) is
    split by the English rules, without a word.
    """
    # Neither odd white space nor half a surrogate pair is printable, and most text is.
    if not text.isprintable():
        text = _SURROGATE.sub("\ufffd", _ODD_SPACE.sub(" ", text))
    pieces = sentencex.segment(language, text)
    starts: Iterable[int] = accumulate(map(len, pieces), initial=0)
    if "".join(pieces) != text:
        # Of a text beyond some 10 kB it leaves out white space here and there. Boundaries say where the same pieces
        # stand, and take three times as long.
        starts = [boundary["start_index"] for boundary in sentencex.get_sentence_boundaries(language, text)]
    spans: list[Span] = []
    for place, piece in zip(starts, pieces, strict=False):
        kept = piece.rstrip()
        if kept:
            end = place + len(kept)
            spans.append(Span(end - len(kept.lstrip()), end))
    return spans


def limit_broken(span: Span, min_characters: int, max_characters: int) -> str | None:
    """Which limit on its length a sentence breaks (``too short``, ``too long``), if any."""
    length = span.end - span.start
    if length < min_characters:
        return "too short"
    return "too long" if length > max_characters else None
